"""Run vLLM's API server: `python vllm_server.py cpu|cuda ARGUMENTS`, in the environment that has vLLM.

It does what `python -m vllm.entrypoints.openai.api_server` does. On a CPU it first lets the engine's process be a fork,
since half of a server's start is Python reading modules a second time, and gives vLLM's registry a kernel.
docs/tricks.md says what each of the two is for and what would end it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from importlib import import_module
from typing import Any

# What the engine's process imports before it reads weights; forked, it has these already.
SHARED_MODULES = ("vllm.v1.engine.async_llm", "vllm.v1.engine.utils")
REPLACED_KERNEL = "CPUInt8ScaledMMLinearKernel"


def let_engine_fork() -> None:
    """Let the engine's process be a fork of this one.

    vLLM's platform for the CPU asks for `spawn`, whatever the user sets: a fresh interpreter that imports everything
    again. Until its engine starts, this process has computed nothing that a fork could break.
    """
    for name in SHARED_MODULES:
        import_module(name)

    def fork() -> Any:
        return multiprocessing.get_context("fork")

    sys.modules["vllm.v1.engine.utils"].get_mp_context = fork  # type: ignore[attr-defined]


def register_kernel() -> None:
    """Let eight-bit activations be multiplied in float32 on processors with AMX as elsewhere: by oneDNN.

    vLLM takes another kernel there, for 16-bit types only, without a look at the model's type. Registering a kernel
    and disabling one by its name are vLLM's own ways.
    """
    disabled = os.environ.get("VLLM_DISABLED_KERNELS")
    os.environ["VLLM_DISABLED_KERNELS"] = f"{disabled},{REPLACED_KERNEL}" if disabled else REPLACED_KERNEL
    torch: Any = import_module("torch")
    linear: Any = import_module("vllm.model_executor.kernels.linear")
    replaced: Any = getattr(linear, REPLACED_KERNEL)

    class Int8InEveryType(replaced):  # type: ignore[misc]
        def process_weights_after_loading(self, layer: Any) -> None:
            if torch.get_default_dtype() != torch.float32:
                super().process_weights_after_loading(layer)
            else:
                self.linear_method = self._apply_weights_onednn
                self.process_weights_for_onednn(layer)

    linear.register_linear_kernel(Int8InEveryType, import_module("vllm.platforms").PlatformEnum.CPU, "int8")


def main() -> None:
    """Run the server with the arguments after the device."""
    if sys.argv.pop(1) == "cpu":
        let_engine_fork()
        register_kernel()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


if __name__ == "__main__":
    main()

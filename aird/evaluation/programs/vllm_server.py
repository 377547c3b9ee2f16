"""Run vLLM's API server: `python vllm_server.py cpu|cuda ARGUMENTS`, in the environment that has vLLM.

It does what `python -m vllm.entrypoints.openai.api_server` does, and on a CPU first gives vLLM's registry a kernel.
docs/tricks.md says what that is for and what would end it.
"""

from __future__ import annotations

import gc
import os
import runpy
import sys
from importlib import import_module
from typing import Any

# In both processes of a server: the collector would go through all that is imported again and again, 3 of 20 s.
gc.set_threshold(100_000)

REPLACED_KERNEL = "CPUInt8ScaledMMLinearKernel"


def register_kernel() -> None:
    """Let eight-bit activations be multiplied in float32 on processors with AMX as elsewhere: by oneDNN.

    vLLM takes another kernel there, for 16-bit types only, without a look at the model's type. Registering a kernel
    and disabling one by its name are vLLM's own ways.
    """
    disabled = set(filter(None, os.environ.get("VLLM_DISABLED_KERNELS", "").split(",")))
    os.environ["VLLM_DISABLED_KERNELS"] = ",".join({*disabled, REPLACED_KERNEL})
    torch: Any = import_module("torch")
    linear: Any = import_module("vllm.model_executor.kernels.linear")
    replaced: Any = getattr(linear, REPLACED_KERNEL)

    class Int8InEveryType(replaced):
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
        register_kernel()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__" and REPLACED_KERNEL in os.environ.get("VLLM_DISABLED_KERNELS", ""):
    register_kernel()  # in the engine's process, a fresh interpreter that imports its parent's program under this name

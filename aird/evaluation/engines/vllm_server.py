"""Run vLLM's API server: `python vllm_server.py cpu|cuda ARGUMENTS`, in the environment that has vLLM.

`serving.serve` starts this file by its path, so it imports nothing of this project. It does what
`python -m vllm.entrypoints.openai.api_server` does, and on a CPU reaches the same state with fewer
imports: half of a server's start is Python reading modules, once for the API and once more for the
engine's process.
"""

from __future__ import annotations

import gc
import multiprocessing
import runpy
import sys
from importlib import import_module
from typing import Any

# Compilers that `import vllm` adapts to itself, and that an eager server on the CPU never calls.
UNUSED_ON_CPU = ("triton", "torch._inductor")
# What the engine's process imports before it reads weights; forked, it has these already.
SHARED_MODULES = ("vllm.v1.engine.async_llm", "vllm.v1.engine.utils")


def _import_for_cpu() -> None:
    """Import vLLM without its compilers, and let its engine's process be a fork of this one."""
    sys.modules.update(dict.fromkeys(UNUSED_ON_CPU))  # type: ignore[arg-type]  # None makes an import fail
    import_module("vllm")
    for name in UNUSED_ON_CPU:
        del sys.modules[name]
    for name in SHARED_MODULES:
        import_module(name)

    _without_int8_kernel_for_float32()
    _multiply_float8_as_float32()

    # vLLM's platform for the CPU asks for `spawn`, whatever the user sets: a fresh interpreter that imports
    # everything again. Until its engine starts, this process has computed nothing that a fork could break.
    def fork() -> Any:
        return multiprocessing.get_context("fork")

    sys.modules["vllm.v1.engine.utils"].get_mp_context = fork  # type: ignore[attr-defined]


def _without_int8_kernel_for_float32() -> None:
    """Let eight-bit activations be multiplied in float32 on processors with AMX as elsewhere.

    vLLM's own kernel for these takes 16-bit types only, and is chosen without a look at the model's type.
    """
    kernels: Any = import_module("vllm.model_executor.kernels.linear.scaled_mm.cpu")
    torch: Any = import_module("torch")
    suits = kernels.check_cpu_sgl_kernel

    def check(rows: int, columns: int, dtype: Any) -> bool:
        return torch.get_default_dtype() != torch.float32 and bool(suits(rows, columns, dtype))

    kernels.check_cpu_sgl_kernel = check


def _multiply_float8_as_float32() -> None:
    """Multiply eight-bit floats in float32, which holds them exactly, instead of with PyTorch's reference loop.

    Activations are rounded to eight bits before, as the checkpoint says. Each matrix is widened once.
    """
    torch: Any = import_module("torch")
    widened: dict[int, Any] = {}

    def scaled_product(
        rows: Any, matrix: Any, scale_a: Any, scale_b: Any, bias: Any = None, out_dtype: Any = None
    ) -> Any:
        key = matrix.data_ptr()  # a weight's view, made anew in every call
        if key not in widened:
            widened[key] = matrix.float()
        product = (rows.float() @ widened[key]) * scale_a * scale_b
        return (product if bias is None else product + bias).to(out_dtype)

    torch._scaled_mm = scaled_product


def main() -> None:
    """Run the server with the arguments after the device."""
    device = sys.argv.pop(1)
    gc.disable()  # a million objects are made by imports, and none of them is garbage
    if device == "cpu":
        _import_for_cpu()
    gc.freeze()
    gc.enable()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


if __name__ == "__main__":
    main()

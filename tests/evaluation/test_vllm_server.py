"""What is done to vLLM (docs/tricks.md), in vLLM's own environment: it fails where vLLM changes under it."""

from __future__ import annotations

import os
import subprocess
import textwrap
from pathlib import Path

import pytest

from aird.evaluation.programs import vllm_server


def run_there(vllm_python: Path, program: str) -> str:
    """Return what a program prints in vLLM's environment, with the launcher imported."""
    folder = str(Path(vllm_server.__file__).parent)
    head = f"import sys; sys.path.insert(0, {folder!r}); import vllm_server\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [str(vllm_python), "-c", head + textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()[-1]


INT8 = """
    import torch
    from vllm.model_executor.kernels.linear import init_int8_linear_kernel
    from vllm.model_executor.kernels.linear.scaled_mm import cpu

    cpu.check_cpu_sgl_kernel = lambda *_: True  # what vLLM says on a processor with AMX

    def layer():
        generator = torch.Generator().manual_seed(0)
        made = torch.nn.Module()
        made.weight = torch.nn.Parameter(
            torch.randint(-127, 128, (64, 128), dtype=torch.int8, generator=generator), requires_grad=False
        )
        made.weight_scale = torch.nn.Parameter(
            0.01 * torch.rand(64, 1, generator=generator), requires_grad=False
        )
        made.input_scale = made.input_zero_point = made.azp_adj = made.bias = None
        made.logical_widths = [64]
        return made

    def kernel():
        return init_int8_linear_kernel(
            is_channelwise=True, is_static_input_scheme=False, input_symmetric=True, module_name="a module"
        )
"""


def test_eight_bit_activations_in_float32_where_the_processor_has_amx(vllm_python: Path) -> None:
    """The registered kernel multiplies in float32; vLLM's own would take one for 16-bit types: else drop ours."""
    program = f"""{INT8}
    own = kernel()
    own.process_weights_for_sgl = lambda _: None
    own.process_weights_after_loading(layer())
    assert own.linear_method == own._apply_weights_sgl, "vLLM has learnt it: the trick can go"

    vllm_server.register_kernel()
    registered, ours = kernel(), layer()
    matrix = ours.weight.float() * ours.weight_scale
    registered.process_weights_after_loading(ours)
    rows = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    product = registered.apply_weights(ours, rows)
    error = (product - rows @ matrix.T).abs().max() / (rows @ matrix.T).abs().max()
    assert product.dtype == torch.float32 and error < 0.02, error
    print(type(own).__name__, type(registered).__name__)
    """
    assert run_there(vllm_python, program) == "CPUInt8ScaledMMLinearKernel Int8InEveryType"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_bit_floats_are_multiplied_exactly(vllm_python: Path, dtype: str) -> None:
    """vLLM's own product on a CPU, PyTorch's: it is that of the widened matrices, so nothing is done about it."""
    program = f"""
    import torch
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(n, 128, generator=generator).to(torch.float8_e4m3fn) for n in (17, 64))
    one = torch.ones(1)
    product = torch._scaled_mm(rows, columns.t(), scale_a=one, scale_b=one, out_dtype=torch.{dtype})
    expected = (rows.float() @ columns.float().t()).to(torch.{dtype})
    torch.testing.assert_close(product, expected)
    print("equal")
    """
    assert run_there(vllm_python, program) == "equal"

"""DeepSeek's FP8: value = scale x 8-bit float (E4M3), one scale for each block of rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aird.models.format import CONVERT, Format, Quantisation, Repacked, Stored

if TYPE_CHECKING:
    import torch

    from aird.models.checkpoint import Checkpoint

FORM = "fp8-block"


def refusal(quantisation: Quantisation) -> str | None:
    """Refuse one scale for a whole matrix, and stored scales of activations."""
    if not quantisation.get("weight_block_size"):
        return f"is FP8 without blocks of weights (AutoFP8), which is not read; {CONVERT}"
    if quantisation.get("activation_scheme", "dynamic") != "dynamic":
        return f"is FP8 in blocks with stored scales of activations, which is not read; {CONVERT}"
    return None


def recognise(stored: Stored) -> str | None:
    """Return the one form, by its scales."""
    floats = "weight" in stored and stored["weight"].dtype == "F8_E4M3"
    return FORM if floats and "weight_scale_inv" in stored and "weight_scale" not in stored else None


def shape(stored: Stored) -> tuple[int, int]:
    """Return (d_out, d_in)."""
    rows, columns = stored["weight"].shape
    return rows, columns


def scheme(quantisation: Quantisation) -> Any:
    """Return the scheme of the repacked matrices."""
    from compressed_tensors.quantization import QuantizationScheme

    size = list(quantisation["weight_block_size"])
    eight_bits = {"num_bits": 8, "type": "float", "symmetric": True}
    weights = {**eight_bits, "strategy": "block", "block_structure": size}
    activations = {**eight_bits, "dynamic": True, "strategy": "group", "group_size": size[1]}
    return QuantizationScheme.model_validate(
        {"targets": ["Linear"], "weights": weights, "input_activations": activations, "format": "float-quantized"}
    )


def repack(stored: dict[str, torch.Tensor], quantisation: Quantisation) -> Repacked:
    """Rename the scales."""
    tensors = {"weight": stored["weight"], "weight_scale": stored["weight_scale_inv"]}
    return Repacked(tensors, scheme(quantisation), "float-quantized", None)


def matrix(
    checkpoint: Checkpoint, module: str, loaded: dict[str, torch.Tensor], scale_dtype: torch.dtype | None
) -> torch.Tensor:
    """Decode by compressed-tensors' own functions, once it is repacked."""
    from aird.models.packed import decompress

    return decompress(repack(loaded, checkpoint.quantization_config or {}), scale_dtype)


def needs_decoding(checkpoint: Checkpoint, modules: Sequence[str]) -> bool:
    """Return whether blocks do not fill the columns of some matrix: activations are rounded in the same blocks."""
    width = (checkpoint.quantization_config or {})["weight_block_size"][1]
    quantised = [stored for module in modules if recognise(stored := checkpoint.module_tensors(module))]
    return any(shape(stored)[1] % width for stored in quantised)


FORMAT = Format(
    forms=(FORM,),
    refusal=refusal,
    recognise=recognise,
    shape=shape,
    matrix=matrix,
    scheme=lambda checkpoint, module: scheme(checkpoint.quantization_config or {}),
    repack=repack,
    needs_decoding=needs_decoding,
)

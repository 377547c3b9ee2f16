"""AWQ: value = scale x (integer - zero point); words of int32 run along the output, in the order 0 2 4 6 1 3 5 7."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aird.models.format import Format, Quantisation, Repacked, Stored

if TYPE_CHECKING:
    import torch

    from aird.models.checkpoint import Checkpoint


def refusal(quantisation: Quantisation) -> str | None:
    """Refuse other bits than 4, other layouts than gemm, and matrices without zero points."""
    bits = quantisation.get("bits", quantisation.get("w_bit", 4))
    layout = str(quantisation.get("version") or "gemm").lower()
    if bits != 4:
        return f"is AWQ with {bits} bits, which is not read; take one with 4"
    if layout != "gemm":
        return f"is AWQ packed for {layout}, which is not read; save it with version gemm"
    if not quantisation.get("zero_point", True):
        return "is AWQ without zero points, which is not read; save it with zero_point: true"
    return None


def recognise(stored: Stored) -> str | None:
    """Return the one form: words along the output, where GPTQ's run along the input."""
    words = all(local in stored and stored[local].dtype == "I32" for local in ("qweight", "qzeros"))
    return "awq" if words and "scales" in stored and stored["qweight"].shape[1] != stored["scales"].shape[1] else None


def shape(stored: Stored) -> tuple[int, int]:
    """Return (d_out, d_in)."""
    return stored["scales"].shape[1], stored["qweight"].shape[0]


def scheme(quantisation: Quantisation) -> Any:
    """Return the scheme of the repacked matrices."""
    from aird.models.packed import integers_scheme

    size = quantisation.get("group_size", quantisation.get("q_group_size", 128))
    return integers_scheme(quantisation.get("bits", quantisation.get("w_bit", 4)), size, symmetric=False)


def repack(stored: dict[str, torch.Tensor], quantisation: Quantisation) -> Repacked:
    """Put the integers and zero points into the order of compressed-tensors."""
    from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter

    from aird.models.packed import pack_integers

    unpacked = AutoAWQConverter.unpack_awq(stored["qweight"], stored["qzeros"], 4)
    integers, zeros = (
        ((values & 15) - 8).T.contiguous() for values in AutoAWQConverter.reverse_awq_order(*unpacked, 4)
    )
    return pack_integers(integers, zeros, stored["scales"], scheme(quantisation), None)


def matrix(
    checkpoint: Checkpoint, module: str, loaded: dict[str, torch.Tensor], scale_dtype: torch.dtype | None
) -> torch.Tensor:
    """Decode by compressed-tensors' own functions, once it is repacked."""
    from aird.models.packed import decompress

    return decompress(repack(loaded, checkpoint.quantization_config or {}), scale_dtype)


FORMAT = Format(
    forms=("awq",),
    refusal=refusal,
    recognise=recognise,
    shape=shape,
    matrix=matrix,
    scheme=lambda checkpoint, module: scheme(checkpoint.quantization_config or {}),
    repack=repack,
)

"""GPTQ: value = scale x (integer - zero point); words of int32 run along the input.

Version 1 of the format stores zero points less one. `g_idx` names each input column's group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aird.models.format import Format, Quantisation, Repacked, Stored

if TYPE_CHECKING:
    import torch

    from aird.models.checkpoint import Checkpoint


def refusal(quantisation: Quantisation) -> str | None:
    """Refuse other bits and layouts, and settings of single modules."""
    bits, layout = quantisation.get("bits"), _layout(quantisation)
    if bits not in (2, 3, 4, 8):
        return f"is GPTQ with {bits} bits, which is not read; take one with 2, 3, 4 or 8"
    if layout not in ("gptq", "gptq_v2"):
        return f"is GPTQ packed for {layout}, which is not read; save it with format gptq"
    if quantisation.get("dynamic"):
        return "is GPTQ with other settings for some modules (`dynamic`), which is not read; quantise all alike"
    return None


def recognise(stored: Stored) -> str | None:
    """Return the one form: words along the input, where AWQ's run along the output."""
    words = all(local in stored and stored[local].dtype == "I32" for local in ("qweight", "qzeros"))
    return "gptq" if words and "scales" in stored and stored["qweight"].shape[1] == stored["scales"].shape[1] else None


def shape(stored: Stored) -> tuple[int, int]:
    """Return (d_out, d_in): a zero point takes as many bits along the output as a value along the input's words."""
    words, rows = stored["qweight"].shape
    return rows, words * rows // stored["qzeros"].shape[1]


def scheme(quantisation: Quantisation) -> Any:
    """Return the scheme of the repacked matrices."""
    from aird.models.packed import integers_scheme

    symmetric = bool(quantisation.get("sym", True))
    return integers_scheme(quantisation.get("bits", 4), quantisation.get("group_size", 128), symmetric)


def repack(stored: dict[str, torch.Tensor], quantisation: Quantisation) -> Repacked:
    """Put the integers and zero points into the order of compressed-tensors.

    Raises:
        ValueError: zero points that the format does not have, or that programs read differently.
    """
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    from aird.models.packed import pack_integers, scattered

    made = scheme(quantisation)
    words, scales, bits = stored["qweight"], stored["scales"], made.weights.num_bits
    columns, rows = 32 * words.shape[0] // bits, words.shape[1]
    integers = unpack_from_int32(words.T.contiguous(), bits, torch.Size((rows, columns)))
    zeros = unpack_from_int32(stored["qzeros"], bits, torch.Size(scales.shape)).T.contiguous()
    if _layout(quantisation) == "gptq":
        # Stored less one. The greatest stored value means one beyond the range to some programs, 0 to others.
        if bool((zeros == 2 ** (bits - 1) - 1).any()):
            raise ValueError(
                f"it stores {2**bits - 1} as a zero point, which programs read differently in version 1 of GPTQ's "
                "format; save it as gptq_v2, or quantise symmetrically"
            )
        zeros = zeros + 1
    order = scattered(stored.get("g_idx"), made.weights.group_size)
    return pack_integers(integers, zeros, scales, made, order)


def matrix(
    checkpoint: Checkpoint, module: str, loaded: dict[str, torch.Tensor], scale_dtype: torch.dtype | None
) -> torch.Tensor:
    """Decode by compressed-tensors' own functions, once it is repacked."""
    from aird.models.packed import decompress

    return decompress(repack(loaded, checkpoint.quantization_config or {}), scale_dtype)


def needs_decoding(checkpoint: Checkpoint, modules: Sequence[str]) -> bool:
    """Return whether Transformers or vLLM does not read packed integers of these bits, or in this order of columns."""
    from aird.models.packed import SERVED_BITS, column_order

    made = scheme(checkpoint.quantization_config or {})
    quantised = [stored for module in modules if recognise(stored := checkpoint.module_tensors(module))]
    orders = (column_order(stored, made) is not None for stored in quantised)
    return bool(quantised) and (made.weights.num_bits not in SERVED_BITS or any(orders))


def _layout(quantisation: Quantisation) -> str:
    """Return how it is packed: "gptq", zero points less one, or "gptq_v2"; by either of its two keys."""
    return quantisation.get("checkpoint_format") or quantisation.get("format") or "gptq"


FORMAT = Format(
    forms=("gptq",),
    refusal=refusal,
    recognise=recognise,
    shape=shape,
    matrix=matrix,
    scheme=lambda checkpoint, module: scheme(checkpoint.quantization_config or {}),
    repack=repack,
    needs_decoding=needs_decoding,
)

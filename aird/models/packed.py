"""Packed integers as compressed-tensors stores them, for the formats that hold the same numbers in another order.

GPTQ, AWQ and DeepSeek's FP8 hold integers (or 8-bit floats), scales and zero points as compressed-tensors does, in
another order of bits and under other names. So one change of packing, without any rounding, lets everything that reads
compressed-tensors read them: Transformers, PEFT and vLLM as well as this project.
"""

from __future__ import annotations

from typing import Any

import torch

from aird.models.format import Repacked, Stored

# Bits of packed integers that Transformers and vLLM both read.
SERVED_BITS = (4, 8)


def integers_scheme(bits: int, group_size: int | None, symmetric: bool) -> Any:
    """Return the compressed-tensors scheme of packed integers, with a scale per row where groups have no size."""
    from compressed_tensors.quantization import QuantizationScheme

    weights: dict[str, object] = {"num_bits": bits, "type": "int", "symmetric": symmetric}
    if group_size in (-1, None):
        weights["strategy"] = "channel"
    else:
        weights |= {"strategy": "group", "group_size": group_size}
    return QuantizationScheme.model_validate({"targets": ["Linear"], "weights": weights, "format": "pack-quantized"})


def pack_integers(
    integers: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, scheme: Any, order: torch.Tensor | None
) -> Repacked:
    """Pack a matrix, without rounding anything.

    Args:
        integers: [d_out, d_in], signed int8.
        zeros: [d_out, groups] zero points, signed int8.
        scales: [groups, d_out], any float dtype.
        scheme: of `integers_scheme`.
        order: as of `Repacked`.

    Raises:
        ValueError: zero points of a symmetric matrix are not in the middle.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    bits = scheme.weights.num_bits
    tensors = {
        "weight_packed": pack_to_int32(integers, bits).contiguous(),
        "weight_scale": scales.T.contiguous(),
        "weight_shape": torch.tensor(integers.shape),
    }
    if not scheme.weights.symmetric:
        tensors["weight_zero_point"] = pack_to_int32(zeros, bits, packed_dim=0).contiguous()
    elif bool(zeros.any()):
        raise ValueError("its zero points are not in the middle, although config.json says that it is symmetric")
    return Repacked(tensors, scheme, "pack-quantized", order)


def repacked_config(scheme: Any, dense: list[str]) -> dict[str, object]:
    """Return the compressed-tensors `quantization_config` of a repacked checkpoint.

    Args:
        scheme: of its matrices.
        dense: full names of its linear modules that are not quantised.
    """
    from compressed_tensors.quantization import QuantizationConfig

    made = QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=dense, format=scheme.format, quantization_status="compressed"
    )
    return {**made.model_dump(mode="json"), "quant_method": "compressed-tensors"}


def decompress(made: Repacked, scale_dtype: torch.dtype | None) -> torch.Tensor:
    """Return the matrix [d_out, d_in] of what compressed-tensors stores.

    Args:
        made: the matrix.
        scale_dtype: replaces the stored type of the scales, and so that of the result.

    Raises:
        ValueError: it is packed in a way that is not read.
    """
    from compressed_tensors.compressors import BaseCompressor

    loaded = dict(made.tensors)
    if made.form == "pack-quantized":
        _check_packing(loaded, made.scheme)
    if scale_dtype is not None and "weight_scale" in loaded:
        loaded["weight_scale"] = loaded["weight_scale"].to(scale_dtype)
    if made.order is not None:
        return _unordered_matrix(loaded, made.scheme, made.order)
    weight: torch.Tensor = BaseCompressor.get_value_from_registry(made.form).decompress(loaded, made.scheme)["weight"]
    return weight


def ungrouped(
    integers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, order: torch.Tensor
) -> torch.Tensor:
    """Return scale x (integer - zero point) of a matrix whose groups' columns lie apart.

    Args:
        integers: [d_out, d_in].
        scales: [d_out, groups], any float dtype, which the result has.
        zeros: [d_out, groups], integers; None for a symmetric matrix.
        order: [d_in], the group of each column.
    """
    values = integers.to(scales.dtype)
    if zeros is not None:
        values = values - zeros[:, order].to(scales.dtype)
    return values * scales[:, order]


def scattered(groups: torch.Tensor | None, size: int | None) -> torch.Tensor | None:
    """Return the group of each column where columns of a group lie apart; None where they follow each other.

    Args:
        groups: [d_in] stored group of each column (`g_idx`); None or -1 throughout: they follow each other.
        size: columns of a group; None where all are one group.
    """
    if groups is None or bool((groups == -1).all()):
        return None
    plain = torch.arange(len(groups)) // (size or len(groups))
    return None if torch.equal(groups.long(), plain) else groups.long()


def column_order(stored: Stored, scheme: Any) -> torch.Tensor | None:
    """Return the group of each column [d_in] where columns of a group lie apart (GPTQ's `desc_act`), else None.

    The installed Transformers and PEFT know no such order, so a checkpoint that has one needs a dense copy.
    """
    groups = stored.get("g_idx") or stored.get("weight_g_idx")
    return None if groups is None else scattered(groups.load(), scheme.weights.group_size)


def _unordered_matrix(loaded: dict[str, torch.Tensor], scheme: Any, order: torch.Tensor) -> torch.Tensor:
    """Return a packed matrix whose groups' columns lie apart, which compressed-tensors does not decompress."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    scales, bits = loaded["weight_scale"], scheme.weights.num_bits
    shape = torch.Size(loaded["weight_shape"].tolist())
    zeros = None
    if not scheme.weights.symmetric:
        wide = torch.Size((shape[0], scales.shape[1]))
        zeros = unpack_from_int32(loaded["weight_zero_point"], bits, wide, packed_dim=0)
    return ungrouped(unpack_from_int32(loaded["weight_packed"], bits, shape), scales, zeros, order)


def _check_packing(loaded: dict[str, torch.Tensor], scheme: Any) -> None:
    """Refuse groups that fill no row, and the older packing of 3, 5, 6 and 7 bits, which pads each word."""
    bits, columns = scheme.weights.num_bits, int(loaded["weight_shape"][1])
    size = scheme.weights.group_size
    if size is not None and size > 0 and columns % size:
        raise ValueError(
            f"its groups of {size} columns do not divide its {columns} columns, which is not read; quantise it with a "
            "group size that does"
        )
    words, wanted = loaded["weight_packed"].shape[1], -(-columns * bits // 32)
    if words != wanted:
        raise ValueError(
            f"it has {words} words a row where {columns} values of {bits} bits have {wanted}: it was packed by an "
            "older compressed-tensors; save it again with a newer one"
        )

"""GPTQ, AWQ and DeepSeek's FP8 as compressed-tensors stores the same numbers.

The three formats hold integers (or 8-bit floats), scales and zero points as
compressed-tensors does, in another order of bits and under other names. So one
change of packing, without any rounding, lets everything that reads
compressed-tensors read them: Transformers, PEFT and vLLM as well as this project.

GPTQ    value = scale x (integer - zero point); words of int32 run along the input. Version 1 of the
        format stores zero points less one. `g_idx` names each input column's group.
AWQ     the same, words run along the output, in the order 0 2 4 6 1 3 5 7 of each eight values.
FP8     value = scale x 8-bit float, one scale for each block of rows and columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from aird.settings.checkpoint_formats import gptq_layout

# By `quant_method`: what `aird.models.matrices.stored_format` calls the stored tensors.
FOREIGN = {"gptq": "gptq", "awq": "awq", "fp8": "fp8-block"}
_DYNAMIC = {"dynamic": True, "symmetric": True}


class Repacked(NamedTuple):
    """One matrix as compressed-tensors stores it.

    Attributes:
        tensors: stored tensors by local name.
        scheme: its compressed-tensors scheme.
        form: the packing, such as "pack-quantized".
        order: [d_in] group of each input column, where columns of a group lie apart; None elsewhere.
    """

    tensors: dict[str, torch.Tensor]
    scheme: Any
    form: str
    order: torch.Tensor | None


def repack(stored: dict[str, torch.Tensor], form: str, config: dict[str, Any]) -> Repacked:
    """Return a matrix that another format stores as compressed-tensors would, without rounding anything.

    Args:
        stored: its tensors by local name.
        form: "gptq", "awq" or "fp8-block".
        config: the checkpoint's `quantization_config`.

    Raises:
        ValueError: tensors that the format does not have, or that different programs read differently.
    """
    scheme = foreign_scheme(config)
    if form == "fp8-block":
        tensors = {"weight": stored["weight"], "weight_scale": stored["weight_scale_inv"]}
        return Repacked(tensors, scheme, "float-quantized", None)
    if form == "gptq":
        integers, zeros, order = _gptq(stored, config)
    else:
        integers, zeros, order = _awq(stored)
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    bits = scheme.weights.num_bits
    tensors = {
        "weight_packed": pack_to_int32(integers, bits).contiguous(),
        "weight_scale": stored["scales"].T.contiguous(),
        "weight_shape": torch.tensor(integers.shape),
    }
    if not scheme.weights.symmetric:
        tensors["weight_zero_point"] = pack_to_int32(zeros, bits, packed_dim=0).contiguous()
    elif bool(zeros.any()):
        raise ValueError("its zero points are not in the middle, although config.json says that it is symmetric")
    return Repacked(tensors, scheme, "pack-quantized", order)


def foreign_scheme(config: dict[str, Any]) -> Any:
    """Return the compressed-tensors scheme that a GPTQ, AWQ or FP8 `quantization_config` stands for."""
    from compressed_tensors.quantization import QuantizationScheme

    weights: dict[str, Any]
    activations = None
    form = "pack-quantized"
    if config["quant_method"] == "fp8":
        eight_bits = {"num_bits": 8, "type": "float"}
        size = list(config["weight_block_size"])
        weights = {**eight_bits, "symmetric": True, "strategy": "block", "block_structure": size}
        activations = {**eight_bits, **_DYNAMIC, "strategy": "group", "group_size": size[1]}
        form = "float-quantized"
    else:
        size = config.get("group_size", config.get("q_group_size", 128))
        bits = config.get("bits", config.get("w_bit", 4))
        symmetric = bool(config.get("sym", True)) if config["quant_method"] == "gptq" else False
        weights = {"num_bits": bits, "type": "int", "symmetric": symmetric}
        weights |= {"strategy": "channel"} if size in (-1, None) else {"strategy": "group", "group_size": size}
    return QuantizationScheme.model_validate(
        {"targets": ["Linear"], "weights": weights, "input_activations": activations, "format": form}
    )


def foreign_config(config: dict[str, Any], dense: list[str]) -> dict[str, Any]:
    """Return the compressed-tensors `quantization_config` of a repacked checkpoint.

    Args:
        config: the `quantization_config` that it had.
        dense: full names of its linear modules that are not quantised.
    """
    from compressed_tensors.quantization import QuantizationConfig

    scheme = foreign_scheme(config)
    made = QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=dense, format=scheme.format, quantization_status="compressed"
    )
    return {**made.model_dump(mode="json"), "quant_method": "compressed-tensors"}


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


def _gptq(
    stored: dict[str, torch.Tensor], config: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return integers [d_out, d_in] and zero points [d_out, groups], both signed int8, and the columns' groups."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    weights, words, scales = foreign_scheme(config).weights, stored["qweight"], stored["scales"]
    bits = weights.num_bits
    columns, rows = 32 * words.shape[0] // bits, words.shape[1]
    integers = unpack_from_int32(words.T.contiguous(), bits, torch.Size((rows, columns)))
    zeros = unpack_from_int32(stored["qzeros"], bits, torch.Size(scales.shape)).T.contiguous()
    if gptq_layout(config) == "gptq":
        # Stored less one. The greatest stored value means one beyond the range to some programs, 0 to others.
        if bool((zeros == 2 ** (bits - 1) - 1).any()):
            raise ValueError(
                f"it stores {2**bits - 1} as a zero point, which programs read differently in version 1 of GPTQ's "
                "format; save it as gptq_v2, or quantise symmetrically"
            )
        zeros = zeros + 1
    return integers, zeros, scattered(stored.get("g_idx"), weights.group_size)


def _awq(stored: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, None]:
    """Return integers [d_out, d_in] and zero points [d_out, groups], both signed int8."""
    from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter

    unpacked = AutoAWQConverter.unpack_awq(stored["qweight"], stored["qzeros"], 4)
    integers, zeros = (
        ((values & 15) - 8).T.contiguous() for values in AutoAWQConverter.reverse_awq_order(*unpacked, 4)
    )
    return integers, zeros, None

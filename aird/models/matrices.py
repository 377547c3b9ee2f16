"""The effective dense matrix of one module, read from any checkpoint that this project reads.

Dense, compressed-tensors and bitsandbytes weights are decompressed by those
libraries' own functions, one module at a time, so that a matrix equals what
Transformers computes with. GPTQ, AWQ and DeepSeek's FP8 are repacked for them
first (`aird.models.repacking`). All formats: docs/checkpoints.md.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from aird.models.checkpoint import FLOAT_BITS, Checkpoint, StoredTensor, read_checkpoint
from aird.models.repacking import FOREIGN, foreign_scheme, repack, scattered, ungrouped
from aird.settings.checkpoint_formats import orders_columns, refusal

UNKNOWN_FORMAT = "unknown"
# Where some tools say it instead of config.json: AutoGPTQ, AutoAWQ, ModelOpt.
OTHER_CONFIGURATIONS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_BITSANDBYTES_4BIT = "weight.quant_state.bitsandbytes__"


def dense_matrix(checkpoint: Path, module: str) -> torch.Tensor:
    """Return the effective weight of one linear module.

    Args:
        checkpoint: a checkpoint folder, dense or quantised, one file or shards.
        module: full name of the module, such as "model.layers.3.self_attn.o_proj".

    Returns:
        The weight [d_out, d_in] in the stored float dtype: that of the scales for compressed-tensors, GPTQ,
        AWQ and FP8; bfloat16 for NVFP4 and MXFP4, as compressed-tensors unpacks them; that of the original
        for 4-bit bitsandbytes, float32 for bitsandbytes int8.

    Raises:
        ValueError: there is no such module (the message lists similar names), or its stored
            tensors are of no known format.
    """
    return matrix_of(read_checkpoint(checkpoint), module)


def matrix_tensors(checkpoint: Path, module: str) -> dict[str, tuple[str, str]]:
    """Return {local name: (file name, tensor name)} of the stored tensors of a module's weight.

    A dense module has {"weight": ("model.safetensors", "model.layers.3.self_attn.o_proj.weight")};
    a packed one also has its scales. The bias is not part of the weight.

    Raises:
        ValueError: there is no such module; the message lists similar names.
    """
    stored = _tensors_of(read_checkpoint(checkpoint), module)
    return {local: (tensor.file.name, tensor.name) for local, tensor in stored.items()}


def matrix_of(checkpoint: Checkpoint, module: str, scale_dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return what `dense_matrix` does, from headers already read.

    `scale_dtype` replaces the stored type of compressed-tensors' scales, and so that of the result.
    """
    stored = _tensors_of(checkpoint, module)
    form = stored_format(stored)
    if form == "dense":
        return stored["weight"].load()
    loaded = {local: tensor.load() for local, tensor in stored.items()}
    if form == "bitsandbytes-int8":
        from bitsandbytes.functional import int8_vectorwise_dequant

        return int8_vectorwise_dequant(loaded["weight"], loaded["SCB"])
    if form in ("bitsandbytes-nf4", "bitsandbytes-fp4"):
        from bitsandbytes.functional import QuantState, dequantize_4bit

        packed = loaded.pop("weight")
        state = QuantState.from_dict(loaded, device=torch.device("cpu"))
        return dequantize_4bit(packed, state)
    scheme = quantization_scheme(checkpoint, module)
    if form == UNKNOWN_FORMAT or scheme is None:
        dtypes = {local: tensor.dtype for local, tensor in stored.items()}
        declared = "does not quantise it" if scheme is None else f"declares {scheme.format}"
        raise ValueError(
            f"{checkpoint.folder}: cannot read {module}, stored as {dtypes}; config.json {declared}. "
            "Rebuild the checkpoint; a compressed model must not be loaded, edited and saved"
        )
    from compressed_tensors.compressors import BaseCompressor

    order = None
    try:
        if form in FOREIGN.values():
            loaded, scheme, form, order = repack(loaded, form, checkpoint.quantization_config or {})
        elif form == "pack-quantized":
            order = scattered(loaded.pop("weight_g_idx", None), scheme.weights.group_size)
        if form == "pack-quantized":
            _check_packing(loaded, scheme)
    except ValueError as error:
        raise ValueError(f"{checkpoint.folder}: cannot read {module}: {error}") from error
    if scale_dtype is not None and "weight_scale" in loaded:
        loaded["weight_scale"] = loaded["weight_scale"].to(scale_dtype)
    if order is not None:
        return _unordered_matrix(loaded, scheme, order)
    return BaseCompressor.get_value_from_registry(form).decompress(loaded, scheme)["weight"]


def column_order(checkpoint: Checkpoint, module: str) -> torch.Tensor | None:
    """Return the group of each column [d_in] where columns of a group lie apart (GPTQ's `desc_act`), else None.

    The installed Transformers and PEFT know no such order, so a checkpoint that has one needs a dense copy.
    """
    stored = _tensors_of(checkpoint, module)
    groups = stored.get("g_idx") or stored.get("weight_g_idx")
    scheme = quantization_scheme(checkpoint, module) if groups is not None else None
    return None if groups is None or scheme is None else scattered(groups.load(), scheme.weights.group_size)


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


def matrix_shape(stored: dict[str, StoredTensor]) -> tuple[int, int]:
    """Return (d_out, d_in) of a module from its stored tensors; ValueError where they do not say."""
    form = stored_format(stored)
    if "weight_shape" in stored:
        rows, columns = stored["weight_shape"].load().tolist()
    elif form in ("nvfp4-pack-quantized", "mxfp4-pack-quantized"):
        rows, half = stored["weight_packed"].shape  # two 4-bit floats a byte
        columns = 2 * half
    elif form == "awq":
        columns, rows = stored["qweight"].shape[0], stored["scales"].shape[1]
    elif form == "gptq":
        # As many bits a value along the output's zero points as along the input's words.
        rows = stored["qweight"].shape[1]
        columns = stored["qweight"].shape[0] * rows // stored["qzeros"].shape[1]
    elif "weight" not in stored:
        raise ValueError(f"{', '.join(tensor.name for tensor in stored.values())}: the weight's shape is missing")
    elif form in ("bitsandbytes-nf4", "bitsandbytes-fp4"):
        state = next(tensor for local, tensor in stored.items() if "quant_state" in local)
        rows, columns = json.loads(bytes(state.load().tolist()))["shape"]
    else:
        rows, columns = stored["weight"].shape
    return rows, columns


def stored_format(stored: dict[str, StoredTensor]) -> str:
    """Return the format that a module's stored tensors have, whatever config.json says.

    One of "dense", "bitsandbytes-int8", "bitsandbytes-nf4", "bitsandbytes-fp4", "gptq", "awq", "fp8-block",
    compressed-tensors' names ("pack-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized"), or "unknown" for tensors that fit none of them.
    """
    dtypes = {local: tensor.dtype for local, tensor in stored.items()}
    if "weight_packed" in stored:
        return _packed_format(dtypes)
    if dtypes.get("qweight") == "I32" and dtypes.get("qzeros") == "I32" and "scales" in stored:
        # GPTQ's words run along the input, AWQ's along the output.
        return "gptq" if stored["qweight"].shape[1] == stored["scales"].shape[1] else "awq"
    weight = dtypes.get("weight")
    if weight in FLOAT_BITS and len(stored) == 1:
        return "dense"
    if weight == "I8" and "SCB" in stored:
        return "bitsandbytes-int8"
    if weight == "U8":
        kinds = [kind for kind in ("nf4", "fp4") if f"{_BITSANDBYTES_4BIT}{kind}" in stored]
        return f"bitsandbytes-{kinds[0]}" if kinds else UNKNOWN_FORMAT
    if weight in ("I8", "F8_E4M3") and "weight_scale" in stored:
        return "int-quantized" if weight == "I8" else "float-quantized"
    return "fp8-block" if weight == "F8_E4M3" and "weight_scale_inv" in stored else UNKNOWN_FORMAT


def check_dense(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint without `quantization_config` stores no packed matrix: it would be read as random numbers
    or, in FP8, without its scales.

    Raises:
        ValueError: it stores one; some tools describe it in a file of its own.
    """
    packed = {
        module: stored_format(stored)
        for module in checkpoint.matrix_modules()
        if "weight" not in (stored := checkpoint.module_tensors(module)) or stored["weight"].dtype not in FLOAT_BITS
    }
    packed |= {name: tensor.dtype for name, tensor in checkpoint.tensors.items() if tensor.dtype.startswith("F8_")}
    for name, form in packed.items():
        other = next((file for file in OTHER_CONFIGURATIONS if (checkpoint.folder / file).is_file()), None)
        where = f"; {other}, which some tools write instead, is not read" if other else ""
        raise ValueError(
            f"{checkpoint.folder} stores {name} packed ({form}), but its config.json has no "
            f"quantization_config{where}; take a checkpoint that has one, or write it there, with its quant_method"
        )


def _packed_format(dtypes: dict[str, str]) -> str:
    packed, scale = dtypes["weight_packed"], dtypes.get("weight_scale")
    if packed == "I32" and scale is not None and dtypes.get("weight_shape") in ("I64", "I32"):
        return "pack-quantized"
    if packed == "U8" and scale == "F8_E4M3" and "weight_global_scale" in dtypes:
        return "nvfp4-pack-quantized"
    return "mxfp4-pack-quantized" if packed == scale == "U8" else UNKNOWN_FORMAT


def declared_format(checkpoint: Checkpoint, module: str) -> str:
    """Return the format that config.json declares for a linear module, in the words of `stored_format`."""
    config = checkpoint.quantization_config
    if config is None:
        return "dense"
    if config.get("quant_method") == "bitsandbytes":
        from transformers.quantizers.quantizers_utils import should_convert_module

        # A name there may be a part of a block, or a pattern.
        if not should_convert_module(module, config.get("llm_int8_skip_modules") or []):
            return "dense"
        four_bits = config.get("load_in_4bit") or config.get("_load_in_4bit")
        return f"bitsandbytes-{config['bnb_4bit_quant_type'] if four_bits else 'int8'}"
    if config.get("quant_method") in FOREIGN:
        # These name no modules: what is stored decides, as it does for the programs that serve them.
        stored = stored_format(_tensors_of(checkpoint, module))
        return stored if stored == "dense" else FOREIGN[config["quant_method"]]
    scheme = quantization_scheme(checkpoint, module)
    if scheme is None:
        return "dense"
    return str(getattr(scheme.format, "value", scheme.format) or config["format"])


def quantization_scheme(checkpoint: Checkpoint, module: str) -> Any:
    """Return the compressed-tensors scheme that config.json applies to a linear module, or None.

    For GPTQ, AWQ and DeepSeek's FP8 it is the scheme of the repacked matrix.

    Raises:
        ValueError: the checkpoint was quantised by a library that this project does not read.
    """
    config = checkpoint.quantization_config
    if config is None:
        return None
    if reason := refusal(config):
        raise ValueError(f"{checkpoint.folder} {reason}")
    if config["quant_method"] == "bitsandbytes":
        raise ValueError(f"{checkpoint.folder}: bitsandbytes has no scheme of compressed-tensors")
    if config["quant_method"] in FOREIGN:
        return None if declared_format(checkpoint, module) == "dense" else foreign_scheme(config)
    from compressed_tensors.utils import match_targets

    parsed = _parsed(checkpoint)
    # Schemes name modules or classes; only the class of this stand-in is looked at.
    linear = torch.nn.Linear(1, 1, device="meta")
    if match_targets(module, linear, parsed.ignore):
        return None
    schemes = {target: scheme for scheme in parsed.config_groups.values() for target in scheme.targets}
    matched = match_targets(module, linear, schemes)
    return schemes[matched[0]] if matched else None


def experts_scheme(checkpoint: Checkpoint) -> Any:
    """Return the compressed-tensors scheme by which Transformers decodes all experts that it puts together.

    Args:
        checkpoint: one in compressed-tensors' packing, or in a format that is repacked.
    """
    from transformers.integrations.compressed_tensors import get_experts_scheme

    config = checkpoint.quantization_config or {}
    return foreign_scheme(config) if config["quant_method"] in FOREIGN else get_experts_scheme(_parsed(checkpoint))


def _parsed(checkpoint: Checkpoint) -> Any:
    """Return a `quantization_config` as the installed compressed-tensors reads it; ValueError where it does not."""
    from compressed_tensors.quantization import QuantizationConfig

    try:
        return QuantizationConfig.model_validate(_without_order(checkpoint.quantization_config or {}))
    except ValidationError as error:
        places = ".".join(map(str, error.errors()[0]["loc"]))
        raise ValueError(
            f"{checkpoint.folder}: the installed compressed-tensors does not read the quantization_config of its "
            f"config.json ({places}: {error.errors()[0]['msg']}); save it with another version of compressed-tensors"
        ) from error


def _without_order(config: dict[str, Any]) -> dict[str, Any]:
    """Return a `quantization_config` without the order of columns, by which `matrix_of` goes itself."""
    groups = {
        name: {**group, "weights": {**group["weights"], "actorder": None}} if orders_columns(group) else group
        for name, group in (config.get("config_groups") or {}).items()
    }
    return {**config, "config_groups": groups}


def _tensors_of(checkpoint: Checkpoint, module: str) -> dict[str, StoredTensor]:
    modules = checkpoint.matrix_modules()
    if module not in modules:
        similar = difflib.get_close_matches(module, modules, n=5, cutoff=0.0)
        raise ValueError(
            f"{checkpoint.folder} stores no weight matrix of {module}; similar names: {', '.join(similar)}"
        )
    return checkpoint.module_tensors(module)

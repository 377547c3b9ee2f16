"""The effective dense matrix of one module, read from any checkpoint this package writes.

Dense, compressed-tensors (packed integers, 8-bit integers, 8-bit floats) and
bitsandbytes weights are decompressed by those libraries' own functions, one
module at a time, so that a matrix equals what Transformers computes with.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import torch

from aird.models.checkpoint import FLOAT_BITS, Checkpoint, StoredTensor, read_checkpoint

UNKNOWN_FORMAT = "unknown"


def dense_matrix(checkpoint: Path, module: str) -> torch.Tensor:
    """Return the effective weight of one linear module.

    Args:
        checkpoint: a checkpoint folder, dense or quantised, one file or shards.
        module: full name of the module, such as "model.layers.3.self_attn.o_proj".

    Returns:
        The weight [d_out, d_in] in the stored float dtype (that of the scales for compressed-tensors,
        that of the original for bitsandbytes NF4, float32 for bitsandbytes int8).

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
    if scale_dtype is not None and "weight_scale" in loaded:
        loaded["weight_scale"] = loaded["weight_scale"].to(scale_dtype)
    if form == "bitsandbytes-int8":
        from bitsandbytes.functional import int8_vectorwise_dequant

        return int8_vectorwise_dequant(loaded["weight"], loaded["SCB"])
    if form == "bitsandbytes-nf4":
        from bitsandbytes.functional import QuantState, dequantize_4bit

        packed = loaded.pop("weight")
        state = QuantState.from_dict(loaded, device=torch.device("cpu"))
        return dequantize_4bit(packed, state)
    scheme = quantization_scheme(checkpoint, module)
    if form == UNKNOWN_FORMAT or scheme is None:
        found = {local: tensor.dtype for local, tensor in stored.items()}
        declared = "does not quantise it" if scheme is None else f"declares {scheme.format}"
        raise ValueError(
            f"{checkpoint.folder}: cannot read {module}, stored as {found}; config.json {declared}. "
            "Rebuild the checkpoint; a compressed model must not be loaded, edited and saved"
        )
    from compressed_tensors.compressors import BaseCompressor

    compressor = BaseCompressor.get_value_from_registry(form)
    return compressor.decompress(loaded, scheme)["weight"]


def matrix_shape(stored: dict[str, StoredTensor]) -> tuple[int, int]:
    """Return (d_out, d_in) of a module from its stored tensors; ValueError where they do not say."""
    if "weight_shape" in stored:
        rows, columns = stored["weight_shape"].load().tolist()
    elif "weight" not in stored:
        raise ValueError(f"{', '.join(tensor.name for tensor in stored.values())}: the weight's shape is missing")
    elif stored_format(stored) == "bitsandbytes-nf4":
        state = next(tensor for local, tensor in stored.items() if "quant_state" in local)
        rows, columns = json.loads(bytes(state.load().tolist()))["shape"]
    else:
        rows, columns = stored["weight"].shape
    return rows, columns


def stored_format(stored: dict[str, StoredTensor]) -> str:
    """Return the format that a module's stored tensors have, whatever config.json says.

    One of "dense", "pack-quantized", "int-quantized", "float-quantized", "bitsandbytes-int8",
    "bitsandbytes-nf4", or "unknown" for tensors that fit none of them.
    """
    weight = stored.get("weight")
    if weight is None:
        wanted = {"weight_packed": "I32", "weight_shape": "I64"}
        packed = all(local in stored and stored[local].dtype == dtype for local, dtype in wanted.items())
        return "pack-quantized" if packed and "weight_scale" in stored else UNKNOWN_FORMAT
    if weight.dtype in FLOAT_BITS and len(stored) == 1:
        return "dense"
    if weight.dtype == "I8" and "SCB" in stored:
        return "bitsandbytes-int8"
    if weight.dtype == "U8" and "weight.quant_state.bitsandbytes__nf4" in stored:
        return "bitsandbytes-nf4"
    if weight.dtype in ("I8", "F8_E4M3") and "weight_scale" in stored:
        return "int-quantized" if weight.dtype == "I8" else "float-quantized"
    return UNKNOWN_FORMAT


def declared_format(checkpoint: Checkpoint, module: str) -> str:
    """Return the format that config.json declares for a linear module, in the words of `stored_format`."""
    config = checkpoint.quantization_config
    if config is None:
        return "dense"
    if config.get("quant_method") == "bitsandbytes":
        skipped = config.get("llm_int8_skip_modules") or []
        if any(module == name or module.endswith(f".{name}") for name in skipped):
            return "dense"
        four_bits = config.get("load_in_4bit") or config.get("_load_in_4bit")
        return f"bitsandbytes-{config['bnb_4bit_quant_type'] if four_bits else 'int8'}"
    scheme = quantization_scheme(checkpoint, module)
    if scheme is None:
        return "dense"
    return str(getattr(scheme.format, "value", scheme.format) or config["format"])


def quantization_scheme(checkpoint: Checkpoint, module: str) -> Any:
    """Return the compressed-tensors scheme that config.json applies to a linear module, or None.

    Raises:
        ValueError: the checkpoint was quantised by a library that this project does not read.
    """
    config = checkpoint.quantization_config
    if config is None:
        return None
    if config.get("quant_method") != "compressed-tensors":
        raise ValueError(f"{checkpoint.folder}: quantised with {config.get('quant_method')}, which is not supported")
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils import match_targets

    parsed = QuantizationConfig.model_validate(config)
    # Schemes name modules or classes; only the class of this stand-in is looked at.
    linear = torch.nn.Linear(1, 1, device="meta")
    if match_targets(module, linear, parsed.ignore):
        return None
    schemes = {target: scheme for scheme in parsed.config_groups.values() for target in scheme.targets}
    matched = match_targets(module, linear, schemes)
    return schemes[matched[0]] if matched else None


def _tensors_of(checkpoint: Checkpoint, module: str) -> dict[str, StoredTensor]:
    modules = checkpoint.matrix_modules()
    if module not in modules:
        similar = difflib.get_close_matches(module, modules, n=5, cutoff=0.0)
        raise ValueError(
            f"{checkpoint.folder} stores no weight matrix of {module}; similar names: {', '.join(similar)}"
        )
    return checkpoint.module_tensors(module)

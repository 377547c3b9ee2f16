"""The effective dense matrix of one module, read from any checkpoint that this project reads.

Dense, compressed-tensors and bitsandbytes weights are decompressed by those
libraries' own functions, one module at a time, so that a matrix equals what
Transformers computes with. Each format is a plug-in (`aird.models.formats`), which is
loaded for its own checkpoints. All formats: docs/checkpoints.md.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch

from aird.models.checkpoint import FLOAT_BITS, Checkpoint, StoredTensor, read_checkpoint
from aird.models.format import format_of, formats
from aird.models.refusals import refusal

UNKNOWN_FORMAT = "unknown"
# Where some tools say it instead of config.json: AutoGPTQ, AutoAWQ, ModelOpt.
OTHER_CONFIGURATIONS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


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
    form = stored_format(checkpoint, module)
    if form == "dense":
        return stored["weight"].load()
    found = format_of(checkpoint.quantization_config)
    declared = declared_format(checkpoint, module)
    if found is None or form not in found.forms or declared == "dense":
        dtypes = {local: tensor.dtype for local, tensor in stored.items()}
        says = "does not quantise it" if declared == "dense" else f"declares {declared}"
        raise ValueError(
            f"{checkpoint.folder}: cannot read {module}, stored as {dtypes}; config.json {says}. "
            "Rebuild the checkpoint; a compressed model must not be loaded, edited and saved"
        )
    loaded = {local: tensor.load() for local, tensor in stored.items()}
    try:
        return found.matrix(checkpoint, module, loaded, scale_dtype)
    except ValueError as error:
        raise ValueError(f"{checkpoint.folder}: cannot read {module}: {error}") from error


def matrix_shape(checkpoint: Checkpoint, module: str) -> tuple[int, int]:
    """Return (d_out, d_in) of a module from its stored tensors; ValueError where they do not say."""
    stored, form = _tensors_of(checkpoint, module), stored_format(checkpoint, module)
    found = next((each for each in formats() if form in each.forms), None) if form != "dense" else None
    shape = stored["weight"].shape if found is None and "weight" in stored else found and found.shape(stored)
    if not shape:
        raise ValueError(f"{', '.join(tensor.name for tensor in stored.values())}: the weight's shape is missing")
    rows, columns = shape
    return rows, columns


def stored_format(checkpoint: Checkpoint, module: str) -> str:
    """Return the form that a module's stored tensors have, whatever config.json says of the module.

    "dense", one of the forms of a format in `aird.models.formats`, or "unknown" for tensors that fit none of them.
    """
    stored = _tensors_of(checkpoint, module)
    if len(stored) == 1 and "weight" in stored and stored["weight"].dtype in FLOAT_BITS:
        return "dense"
    own = format_of(checkpoint.quantization_config)
    # Others are asked only where tensors are not what config.json says, for the message.
    form = (own.recognise(stored) if own is not None else None) or next(
        filter(None, (each.recognise(stored) for each in formats())), None
    )
    return form or UNKNOWN_FORMAT


def check_dense(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint without `quantization_config` stores no packed matrix: it would be read as random numbers
    or, in FP8, without its scales.

    Raises:
        ValueError: it stores one; some tools describe it in a file of its own.
    """
    packed = {
        module: stored_format(checkpoint, module)
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


def declared_format(checkpoint: Checkpoint, module: str) -> str:
    """Return the form that config.json declares for a linear module, in the words of `stored_format`."""
    config = checkpoint.quantization_config
    if config is None:
        return "dense"
    found = format_of(config)
    if found is None:
        raise ValueError(f"{checkpoint.folder} {refusal(config)}")
    if found.declared is not None:
        return found.declared(checkpoint, module)
    # It names no modules: what is stored decides, as it does for the programs that serve it.
    return "dense" if stored_format(checkpoint, module) == "dense" else found.forms[0]


def quantization_scheme(checkpoint: Checkpoint, module: str) -> Any:
    """Return the compressed-tensors scheme that config.json applies to a linear module, or None.

    For a format that is repacked it is the scheme of the repacked matrix.

    Raises:
        ValueError: the checkpoint was quantised by a library that this project does not read.
    """
    config = checkpoint.quantization_config
    if config is None:
        return None
    if reason := refusal(config):
        raise ValueError(f"{checkpoint.folder} {reason}")
    found = format_of(config)
    if found is None or found.scheme is None:
        raise ValueError(f"{checkpoint.folder}: {config['quant_method']} has no scheme of compressed-tensors")
    if found.repack is not None and declared_format(checkpoint, module) == "dense":
        return None
    return found.scheme(checkpoint, module)


def _tensors_of(checkpoint: Checkpoint, module: str) -> dict[str, StoredTensor]:
    modules = checkpoint.matrix_modules()
    if module not in modules:
        similar = difflib.get_close_matches(module, modules, n=5, cutoff=0.0)
        raise ValueError(
            f"{checkpoint.folder} stores no weight matrix of {module}; similar names: {', '.join(similar)}"
        )
    return checkpoint.module_tensors(module)

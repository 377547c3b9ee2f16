"""A dense copy of a quantised checkpoint: for a server that lacks its kernels, and for gradients.

vLLM has no kernel for packed integers on a CPU without AVX-512, and cannot load
bitsandbytes anywhere. Weight-only quantisation computes with the dequantised
matrix, so a dense copy gives the same results; of LLM.int8 it keeps the rounded
weights and leaves out the rounding of activations. The copy has the type that is computed in, in which it
would be loaded anyway. What learns through a model
takes a dense copy where the format's own kernels pass no gradient.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from aird.models.checkpoint import Checkpoint, read_checkpoint
from aird.models.format import format_of
from aird.models.loading import code_is_trusted, compute_dtype, copy_description, load_model, stored_dtype
from aird.models.matrices import declared_format, matrix_of, quantization_scheme, stored_format
from aird.support.files import read_json, write_json

SHARD_BYTES = 2 * 10**9  # of a dense copy; no more of it is in memory at once


def needs_dense_copy(folder: Path, on_cpu: bool) -> bool:
    """Return whether vLLM has to be given a dense copy of a checkpoint.

    Args:
        folder: a checkpoint folder.
        on_cpu: whether vLLM runs on a CPU, where it lacks kernels for packed weights and for floats in blocks.
    """
    found = format_of(read_checkpoint(folder).quantization_config)
    if found is not None and not found.served:
        return True
    return on_cpu and (is_weight_only(folder) or _has_blocks_of_floats(folder))


def is_weight_only(folder: Path) -> bool:
    """Return whether a checkpoint is quantised, and in its weights only (activations stay as they are)."""
    checkpoint = read_checkpoint(folder)
    quantised = _quantised_modules(checkpoint)
    return bool(quantised) and not rounds_activations(folder)


def rounds_activations(folder: Path) -> bool:
    """Return whether some module rounds its inputs at run time."""
    checkpoint = read_checkpoint(folder)
    return any(_quantises_activations(checkpoint, module) for module in _quantised_modules(checkpoint))


def passes_gradients(folder: Path) -> bool:
    """Return whether a gradient passes through all modules of a checkpoint, as Transformers runs it.

    Rounding of activations has none: compressed-tensors rounds without recording it, so whatever lies before a rounded
    input gets none through it. Nor has bitsandbytes' product of four bits on some processors. Matrices that are only
    stored in few bits pass it.
    """
    found = format_of(read_checkpoint(folder).quantization_config)
    return found is None or (found.passes_gradients and not rounds_activations(folder))


@contextlib.contextmanager
def model_with_gradients(
    folder: Path, scratch: Path, adapter: Path | None = None, dtype: torch.dtype | None = None
) -> Iterator[Any]:
    """Yield a checkpoint as a model through which gradients pass: itself, or where they do not a dense copy.

    The copy has the same matrices and rounds no activations.

    Args:
        folder: a checkpoint folder.
        scratch: where the copy is made and removed again, a folder on a disk with room for it.
        adapter, dtype: as of `load_model`.
    """
    if passes_gradients(folder):
        yield load_model(folder, adapter, dtype)
        return
    with tempfile.TemporaryDirectory(prefix=".aird-dense-", dir=scratch) as copy:
        write_dense_copy(folder, Path(copy), dtype or computed_dtype(folder))
        yield load_model(Path(copy), adapter, dtype)


def computed_dtype(folder: Path) -> torch.dtype:
    """Return the type that a checkpoint is computed in, to which a dense copy in more bits would be rounded."""
    chosen = compute_dtype(folder)
    return chosen if isinstance(chosen, torch.dtype) else stored_dtype(folder)


def write_dense_copy(folder: Path, target: Path, dtype: torch.dtype) -> None:
    """Write the checkpoint `folder` without its quantisation into the folder `target`, shard by shard.

    The product of integer and scale is computed in float32, and rounded once. Every other tensor keeps its type and
    bytes.

    Args:
        folder: a quantised checkpoint folder.
        target: an existing, empty folder.
        dtype: the type that quantised matrices get.
    """
    checkpoint = read_checkpoint(folder)
    weight_map: dict[str, str] = {}
    file = target / "model.safetensors"
    for number, tensors in enumerate(_dense_shards(checkpoint, dtype)):
        file = target / f"model-{number + 1:05}.safetensors"
        save_file(tensors, file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file.name)
    if len(set(weight_map.values())) > 1:
        write_json(target / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    else:
        file.rename(target / "model.safetensors")
    copy_description(folder, target, code_is_trusted())
    config = read_json(target / "config.json")
    del config["quantization_config"]
    write_json(target / "config.json", config)


def _dense_shards(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the tensors of a dense copy by name, about SHARD_BYTES at a time."""
    modules = _quantised_modules(checkpoint)
    packed = {tensor.name for module in modules for tensor in checkpoint.module_tensors(module).values()}
    kept = ((name, tensor.load()) for name, tensor in checkpoint.tensors.items() if name not in packed)
    decoded = ((f"{module}.weight", matrix_of(checkpoint, module, torch.float32).to(dtype)) for module in modules)
    shard: dict[str, torch.Tensor] = {}
    for name, tensor in itertools.chain(kept, decoded):
        if shard and sum(each.nbytes for each in shard.values()) + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard


def _quantised_modules(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.quantization_config is None:
        return []
    # By what is stored: an embedding matches no scheme, whatever config.json says about linear modules.
    return [name for name in checkpoint.matrix_modules() if stored_format(checkpoint, name) != "dense"]


def _has_blocks_of_floats(folder: Path) -> bool:
    """Return whether some matrix is NVFP4, MXFP4 or FP8 in blocks."""
    checkpoint = read_checkpoint(folder)
    for module in _quantised_modules(checkpoint):
        scheme = quantization_scheme(checkpoint, module)
        if (
            scheme is not None
            and scheme.weights.type == "float"
            and scheme.weights.strategy not in ("tensor", "channel")
        ):
            return True
    return False


def _quantises_activations(checkpoint: Checkpoint, module: str) -> bool:
    found = format_of(checkpoint.quantization_config)
    if found is not None and found.scheme is None:
        return declared_format(checkpoint, module) in found.rounded
    scheme = quantization_scheme(checkpoint, module)
    return scheme is not None and scheme.input_activations is not None

"""Run llm-compressor's one-shot recipes: Wanda, SparseGPT, round-to-nearest, GPTQ, AWQ and FP8.

Its defaults are not ours: left alone it also prunes the output head, reorders the
calibration prompts, and prints a bar per layer and a line per matrix.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aird.compression.quiet import only_warnings
from aird.models.checkpoint import Checkpoint
from aird.models.experts import fused_parameters, separate_modules
from aird.models.loading import attention, code_is_trusted, compute_dtype, stored_dtype
from aird.models.structure import outside_blocks, residual_writers
from aird.settings.compressions import AWQ, FP8, GPTQ, RoundToNearest, SparseGPT, Wanda
from aird.support.files import read_json, write_json

# One scale per token, taken at run time: no calibration is needed.
_DYNAMIC = {"symmetric": True, "strategy": "token", "dynamic": True}


def prune_by_wanda(source: Checkpoint, output: Path, settings: Wanda, calibration: list[list[int]]) -> None:
    """Write `source`'s weights pruned by |weight| x input norm (Wanda, arXiv:2306.11695)."""
    _run(source, output, "pruning.wanda", "WandaPruningModifier", _pruning(settings), calibration)


def prune_by_sparsegpt(source: Checkpoint, output: Path, settings: SparseGPT, calibration: list[list[int]]) -> None:
    """Write `source`'s weights pruned and updated by SparseGPT (arXiv:2301.00774)."""
    _run(source, output, "pruning.sparsegpt", "SparseGPTModifier", _pruning(settings), calibration)


def round_to_nearest(source: Checkpoint, output: Path, settings: RoundToNearest, calibration: None = None) -> None:
    """Write `source`'s weights rounded to `weight_bits`-bit integers."""
    activations = None
    if settings.activation_bits is not None:
        activations = {"num_bits": settings.activation_bits, "type": "int", **_DYNAMIC}
    scheme = _scheme(_integers(settings.weight_bits, settings.group_size), activations)
    _run(source, output, "quantization", "QuantizationModifier", scheme)


def quantise_by_gptq(source: Checkpoint, output: Path, settings: GPTQ, calibration: list[list[int]]) -> None:
    """Write `source`'s weights quantised by GPTQ (arXiv:2210.17323)."""
    scheme = _scheme(_integers(settings.weight_bits, settings.group_size))
    _run(source, output, "gptq", "GPTQModifier", scheme, calibration)


def quantise_by_awq(source: Checkpoint, output: Path, settings: AWQ, calibration: list[list[int]]) -> None:
    """Write `source`'s weights, their input channels scaled, rounded with a zero point (AWQ, arXiv:2306.00978)."""
    weights = {**_integers(settings.weight_bits, settings.group_size), "symmetric": False}
    with _pinning_no_memory():
        _run(source, output, "quantization", "QuantizationModifier", _scheme(weights), calibration, _channel_scales)


def round_to_fp8(source: Checkpoint, output: Path, settings: FP8, calibration: None = None) -> None:
    """Write `source`'s weights rounded to 8-bit floats (E4M3), one scale per output row."""
    eight_bits = {"num_bits": 8, "type": "float"}
    weights = {**eight_bits, "symmetric": True, "strategy": "channel", "dynamic": False}
    scheme = _scheme(weights, {**eight_bits, **_DYNAMIC})
    _run(source, output, "quantization", "QuantizationModifier", scheme)


def _pruning(settings: Wanda | SparseGPT) -> dict[str, Any]:
    # "0:0" means zeros anywhere. Targets are named, because some names match nothing without an error.
    return {"sparsity": settings.sparsity, "mask_structure": settings.pattern or "0:0", "targets": ["Linear"]}


def _scheme(weights: dict[str, Any], activations: dict[str, Any] | None = None) -> dict[str, Any]:
    # Spelled out, because the presets' group size of 128 does not divide the columns of every model.
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {"config_groups": {"group_0": group}}


def _integers(bits: int, group_size: int | None) -> dict[str, Any]:
    strategy = {"strategy": "channel"} if group_size is None else {"strategy": "group", "group_size": group_size}
    return {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, **strategy}


def _run(
    source: Checkpoint,
    output: Path,
    module: str,
    modifier: str,
    options: dict[str, Any],
    calibration: list[list[int]] | None = None,
    first: Callable[[Any], Any] | None = None,
) -> None:
    """Load the model, apply one modifier, and save weights and configuration.

    Args:
        source: the checkpoint to compress.
        output: an existing folder.
        module: the module of `llmcompressor.modifiers` that holds the modifier.
        modifier: its class.
        options: what it is made with, apart from what it must leave alone.
        calibration: token ids, one list per prompt.
        first: makes, of the model, a modifier that has to run before.

    Raises:
        ValueError: the algorithm gave up on a matrix and did something simpler to it.
    """
    with only_warnings() as warned:
        import transformers
        from llmcompressor import oneshot
        from llmcompressor.modeling.moe.conversion_mappings import set_save_conversion_mapping

        transformers.set_seed(0)
        # Many processors are faster in float32. Pruned weights go back to their type without loss;
        # quantisation's scales would not.
        dtype = compute_dtype(source.folder) if module.startswith("pruning.") else "auto"
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(source.folder),
            dtype=dtype,
            attn_implementation=attention(source.folder),
            use_safetensors=True,
            trust_remote_code=code_is_trusted(),
        )
        # llm-compressor takes experts apart, and would store them under names that nothing loads.
        experts = separate_modules(model, source) if fused_parameters(model) else {}
        # Pruning modifiers see "lm_head." where the module is called "lm_head", so plain names never match.
        left_alone = [*outside_blocks(model), *filter(None, source.routers().values())]
        ignore = [f"re:{re.escape(name)}([.]|$)" for name in left_alone]
        recipe = [getattr(import_module(f"llmcompressor.modifiers.{module}"), modifier)(**options, ignore=ignore)]
        if first is not None:
            recipe.insert(0, first(model))
        inputs: dict[str, Any] = {}
        if calibration is not None:
            inputs = {"dataset": _dataset(calibration), "num_calibration_samples": len(calibration)}
            inputs |= {"batch_size": 1, "shuffle_calibration_samples": False, "pipeline": "sequential"}
        oneshot(model=model, recipe=recipe, **inputs)
        if first is None:  # channel scales change norms
            _restore_others(model, source)
        if dtype != "auto":
            model.to(stored_dtype(source.folder))
        if experts:
            set_save_conversion_mapping(model, [])
        model.save_pretrained(output, save_compressed=True, max_shard_size="5GB")
        if experts:
            _rename_tensors(output, experts)
    gave_up = [text for text in warned if "hessian" in text.lower() and "inver" in text.lower()]
    if gave_up:
        raise ValueError(
            "a Hessian could not be inverted, so some matrices were not compressed as the recipe says; "
            f"use more calibration prompts ({gave_up[0]})"
        )


@torch.no_grad()
def _restore_others(model: Any, source: Checkpoint) -> None:
    """Give all but the blocks' matrices their stored values again.

    llm-compressor adds 1 to the gains of Gemma's norms and takes it away again; bfloat16 rounds both times.
    """
    matrices = set(source.block_matrices())
    for name, parameter in model.named_parameters():
        stored = source.tensors.get(name)
        if stored is not None and name.rpartition(".")[0] not in matrices:
            parameter.copy_(stored.load())


def _rename_tensors(folder: Path, names: Mapping[str, str]) -> None:
    """Store the tensors of modules under other names, file by file.

    Args:
        folder: with safetensors, and their index if there are several.
        names: module to its new name; others keep theirs.
    """

    def renamed(name: str) -> str:
        module, _, local = name.rpartition(".")
        return f"{names.get(module, module)}.{local}"

    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt", device="cpu") as stream:
            metadata: dict[str, str] | None = stream.metadata()
        tensors = {renamed(name): tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata=metadata)
    for path in folder.glob("*.safetensors.index.json"):
        index = read_json(path)
        index["weight_map"] = {renamed(name): file for name, file in index["weight_map"].items()}
        write_json(path, index)


def _channel_scales(model: Any) -> Any:
    """Return AWQ's search for channel scales, without those that would reach into the residual writers' inputs.

    Raises:
        ValueError: llm-compressor does not know which norm stands before which matrices of this model.
    """
    from compressed_tensors.utils import match_name
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.awq.dynamic_mappings import (
        AWQ_DYNAMIC_MAPPING_REGISTRY,
        get_layer_mappings_from_model,
    )
    from llmcompressor.modifiers.transform.awq.mappings import AWQ_MAPPING_REGISTRY

    # It would take Llama's names, which elsewhere may be those of a norm behind the matrices.
    name = type(model).__name__
    if name not in {*AWQ_MAPPING_REGISTRY, *AWQ_DYNAMIC_MAPPING_REGISTRY}:
        raise ValueError(
            f"llm-compressor's AWQ does not know {name}, and would scale by the names of another model; use another "
            "recipe, such as gptq or round_to_nearest"
        )
    writers = [name for pair in residual_writers(model) for name in pair.names]
    kept = [
        mapping
        for mapping in get_layer_mappings_from_model(model)
        if not any(match_name(writer, target) for target in mapping.balance_layers for writer in writers)
    ]
    return AWQModifier(mappings=kept)


@contextlib.contextmanager
def _pinning_no_memory() -> Iterator[None]:
    """Where there is no GPU, let AWQ not pin the memory that would be copied to it, which fails (docs/tricks.md)."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    pin_memory = IntermediatesCache.pin_memory
    if not torch.cuda.is_available():
        IntermediatesCache.pin_memory = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = pin_memory  # type: ignore[method-assign]


def _dataset(calibration: list[list[int]]) -> Any:
    from datasets import Dataset

    masks = [[1] * len(prompt) for prompt in calibration]
    return Dataset.from_dict({"input_ids": calibration, "attention_mask": masks})

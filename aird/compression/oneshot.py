"""Run one of llm-compressor's modifiers on a whole model.

Its defaults are not ours: left alone it also prunes the output head, reorders the
calibration prompts, and prints a bar per layer and a line per matrix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aird.compression.quiet import only_warnings
from aird.compression.recipe import RecipeInputs
from aird.models.blocks import outside_blocks
from aird.models.checkpoint import Checkpoint
from aird.models.experts import fused_parameters, separate_modules
from aird.models.loading import attention, code_is_trusted, compute_dtype, stored_dtype
from aird.support.files import read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


def apply(
    module: str,
    modifier: str,
    options: Mapping[str, object],
    inputs: RecipeInputs,
    output: Path,
    first: Callable[[PreTrainedModel], Any] | None = None,
) -> None:
    """Load the model, apply one of llm-compressor's modifiers, and save weights and configuration.

    Args:
        module: the module of `llmcompressor.modifiers` that holds the modifier.
        modifier: its class.
        options: what it is made with, apart from what it must leave alone.
        inputs: the checkpoint to compress, and calibration prompts or sequences.
        output: an existing folder.
        first: makes, of the model, a modifier that has to run before.

    Raises:
        ValueError: the algorithm gave up on a matrix and did something simpler to it.
    """
    source, calibration = inputs.source, inputs.calibration
    with only_warnings() as warned:
        import transformers
        from llmcompressor import oneshot
        from llmcompressor.modeling.moe.conversion_mappings import set_save_conversion_mapping

        transformers.set_seed(0)
        # Many processors are faster in float32. Pruned weights go back to their type without loss;
        # quantisation's scales would not.
        dtype = compute_dtype(source.folder) if module.startswith("pruning.") else "auto"
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
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
        prompts: dict[str, Any] = {}
        if calibration is not None:
            prompts = {"dataset": _dataset(calibration), "num_calibration_samples": len(calibration)}
            prompts |= {"batch_size": 1, "shuffle_calibration_samples": False, "pipeline": "sequential"}
        oneshot(model=model, recipe=recipe, **prompts)
        if first is None:  # channel scales change norms
            _restore_others(model, source)
        if dtype != "auto":
            model.to(stored_dtype(source.folder))  # type: ignore[arg-type]
        if experts:
            set_save_conversion_mapping(model, [])
        model.save_pretrained(output, save_compressed=True, max_shard_size="5GB")
        if experts:
            _rename_tensors(output, experts)
    gave_up = [text for text in warned if "hessian" in text.lower() and "inver" in text.lower()]
    if gave_up:
        raise ValueError(
            "a Hessian could not be inverted, so some matrices were not compressed as the recipe says; "
            f"calibrate on more tokens ({gave_up[0]})"
        )


@torch.no_grad()
def _restore_others(model: PreTrainedModel, source: Checkpoint) -> None:
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


def _dataset(calibration: list[list[int]]) -> Dataset:
    from datasets import Dataset

    masks = [[1] * len(prompt) for prompt in calibration]
    return Dataset.from_dict({"input_ids": calibration, "attention_mask": masks})

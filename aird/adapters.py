"""Edits as a PEFT adapter, and merged into a checkpoint that stands alone.

The adapter leaves the compressed base bit-identical. The merged form rewrites
only the edited matrices: of a quantised base these are stored dense and named in
the quantisation's `ignore` list; every other tensor keeps its bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aird.architecture import outside_blocks
from aird.compression.matrices import dense_matrix, matrix_tensors
from aird.edits import Edit
from aird.files import read_json, write_json
from aird.models import copy_description, load_structure

_PREFIX = "base_model.model."  # PEFT's name for the wrapped model


def save_adapter(edits: Sequence[Edit], folder: Path, base: str) -> None:
    """Write the edits as a rank-1 LoRA adapter that PEFT and vLLM load.

    Args:
        edits: at least one edit.
        folder: an existing, empty folder.
        base: name of the base checkpoint, for the adapter's record.
    """
    tensors = {}
    for edit in edits:
        tensors[f"{_PREFIX}{edit.module}.lora_A.weight"] = edit.row.unsqueeze(0).contiguous()
        tensors[f"{_PREFIX}{edit.module}.lora_B.weight"] = edit.column.unsqueeze(1).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    configuration = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": 1,
        "lora_alpha": 1,
        "lora_dropout": 0.0,
        "bias": "none",
        # Full names: PEFT matches a name exactly, or as the end of a longer one.
        "target_modules": sorted(edit.module for edit in edits),
    }
    write_json(folder / "adapter_config.json", configuration)


def load_adapter(folder: Path) -> list[Edit]:
    """Return the edits of a rank-1 adapter folder.

    Raises:
        ValueError: the adapter is not a plain LoRA of rank 1.
    """
    configuration = read_json(folder / "adapter_config.json")
    if configuration.get("r") != 1 or configuration.get("lora_alpha") != 1:
        raise ValueError(f"{folder} is not an AIRD adapter: it needs r = 1 and lora_alpha = 1")
    tensors = load_file(folder / "adapter_model.safetensors")
    modules = sorted(name.removeprefix(_PREFIX).removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name)
    return [
        Edit(
            module,
            column=tensors[f"{_PREFIX}{module}.lora_B.weight"].squeeze(1),
            row=tensors[f"{_PREFIX}{module}.lora_A.weight"].squeeze(0),
        )
        for module in modules
    ]


def merge(base: Path, edits: Sequence[Edit], target: Path) -> dict[str, float]:
    """Write the checkpoint `base` with the edits merged into the folder `target`.

    Args:
        base: checkpoint folder, dense or in a compressed-tensors format.
        edits: the edits to merge.
        target: an existing, empty folder.

    Returns:
        {module: share of the matrix's zeros that the edit filled}.

    Raises:
        ValueError: a module is not in the checkpoint.
    """
    copy_description(base, target)
    for index in base.glob("*.index.json"):
        (target / index.name).write_bytes(index.read_bytes())
    dense: dict[str, torch.Tensor] = {}
    filled = {}
    stored: dict[str, dict[str, tuple[str, str]]] = {}
    for edit in edits:
        weights = dense_matrix(base, edit.module)
        merged = (weights.double() + edit.matrix().double()).to(weights.dtype)
        zeros = weights == 0
        filled[edit.module] = (merged[zeros] != 0).double().mean().item() if bool(zeros.any()) else 0.0
        dense[edit.module] = merged
        stored[edit.module] = matrix_tensors(base, edit.module)
    quantised = {module for module, tensors in stored.items() if set(tensors) != {"weight"}}
    moved = _rewrite_shards(base, target, dense, stored)
    _rewrite_index(target, moved)
    if quantised:
        _ignore_modules(target, quantised)
    return filled


def _rewrite_shards(
    base: Path, target: Path, dense: dict[str, torch.Tensor], stored: dict[str, dict[str, tuple[str, str]]]
) -> dict[str, str | None]:
    """Write edited shards, link the others; return {tensor name: new file, or None if dropped}."""
    moved: dict[str, str | None] = {}
    replaced_in: dict[str, dict[str, torch.Tensor]] = {}
    dropped: set[str] = set()
    for module, tensors in stored.items():
        # The dense matrix goes to a shard that held the packed one.
        file = min(file for file, _ in tensors.values())
        for _, name in tensors.values():
            dropped.add(name)
            moved[name] = None
        replaced_in.setdefault(file, {})[f"{module}.weight"] = dense[module]
        moved[f"{module}.weight"] = file
    for shard in sorted(base.glob("*.safetensors")):
        with safe_open(shard, "pt") as reader:
            names = list(reader.keys())
            if shard.name not in replaced_in and not dropped.intersection(names):
                _link(shard, target / shard.name)
                continue
            tensors_out = {name: reader.get_tensor(name) for name in names if name not in dropped}
            metadata = reader.metadata()
        tensors_out.update(replaced_in.get(shard.name, {}))
        save_file(tensors_out, target / shard.name, metadata=metadata or {"format": "pt"})
    return moved


def _link(source: Path, target: Path) -> None:
    """Give an untouched shard a second name; copy it where the file system has no links.

    Checkpoints are never written again, and their manifests know their bytes.
    """
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def _rewrite_index(target: Path, moved: dict[str, str | None]) -> None:
    for path in target.glob("*.index.json"):
        index = json.loads(path.read_text(encoding="utf-8"))
        weight_map: dict[str, str] = index["weight_map"]
        for name, file in moved.items():
            if file is None:
                weight_map.pop(name, None)
        weight_map.update({name: file for name, file in moved.items() if file is not None})
        write_json(path, index)


def _ignore_modules(checkpoint: Path, modules: set[str]) -> None:
    """Tell the loader that these modules are stored dense."""
    configuration = read_json(checkpoint / "config.json")
    quantisation = configuration["quantization_config"]
    # Each library has its own name for the list of modules that it leaves alone.
    key = "ignore"
    if quantisation.get("quant_method") == "bitsandbytes":
        key = "llm_int8_skip_modules"
        # Without a list Transformers leaves the output head alone; with one, only what it names.
        modules = modules | set(outside_blocks(load_structure(checkpoint)))
    quantisation[key] = sorted(set(quantisation.get(key) or []) | modules)
    write_json(checkpoint / "config.json", configuration)

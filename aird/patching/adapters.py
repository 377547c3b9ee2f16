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
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aird.models.loading import copy_description, load_structure
from aird.models.matrices import dense_matrix, matrix_tensors
from aird.models.structure import outside_blocks
from aird.patching.edits import Edit, Update
from aird.support.files import read_json, write_json

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
        tensors[f"{_PREFIX}{edit.module}.lora_A.weight"] = edit.row.unsqueeze(0)
        tensors[f"{_PREFIX}{edit.module}.lora_B.weight"] = edit.column.unsqueeze(1)
    write_adapter(tensors, 1, 1, folder, base)


def save_lora(model: Any, folder: Path, base: str) -> None:
    """Write the LoRA adapter of a PEFT model, without what PEFT would note of this machine's paths.

    Args:
        model: a PEFT model with one LoRA adapter.
        folder: an existing, empty folder.
        base: name of the base checkpoint, for the adapter's record.
    """
    from peft import get_peft_model_state_dict

    configuration = model.peft_config["default"]
    write_adapter(get_peft_model_state_dict(model), configuration.r, configuration.lora_alpha, folder, base)


def write_adapter(tensors: dict[str, torch.Tensor], rank: int, alpha: int, folder: Path, base: str) -> None:
    """Write LoRA tensors, named as PEFT names them, and their configuration.

    Args:
        tensors: `base_model.model.{module}.lora_A.weight` [rank, d_in] and `.lora_B.weight` [d_out, rank].
        rank, alpha: of all modules; the adapter adds alpha / rank x B A.
        folder: an existing, empty folder.
        base: name of the base checkpoint, for the adapter's record.
    """
    # Copies: the edits of one patch share their column, and safetensors refuses tensors that share memory.
    contiguous = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    ending = ".lora_A.weight"
    configuration = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        # Full names: PEFT matches a name exactly, or as the end of a longer one.
        "target_modules": sorted(
            name.removeprefix(_PREFIX).removesuffix(ending) for name in tensors if name.endswith(ending)
        ),
    }
    write_json(folder / "adapter_config.json", configuration)


def scale_adapter(folder: Path, strength: float) -> None:
    """Multiply what an adapter adds, in place."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    scaled = {name: strength * tensor if ".lora_B." in name else tensor for name, tensor in tensors.items()}
    save_file(scaled, path, metadata={"format": "pt"})


def load_adapter(folder: Path) -> list[Update]:
    """Return what a LoRA adapter of any rank adds to the matrices.

    Raises:
        ValueError: the adapter is no plain LoRA with one rank and scale for all modules.
    """
    configuration = read_json(folder / "adapter_config.json")
    plain = configuration.get("peft_type") == "LORA" and configuration.get("bias", "none") == "none"
    special = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
    if not plain or any(configuration.get(key) for key in special):
        raise ValueError(f"{folder} is no plain LoRA adapter, so it cannot be merged here; merge it with PEFT")
    scale = configuration["lora_alpha"] / configuration["r"]
    tensors = load_file(folder / "adapter_model.safetensors")
    modules = sorted(name.removeprefix(_PREFIX).removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name)
    return [
        Update(
            module,
            up=scale * tensors[f"{_PREFIX}{module}.lora_B.weight"].float(),
            down=tensors[f"{_PREFIX}{module}.lora_A.weight"].float(),
        )
        for module in modules
    ]


def merge(base: Path, edits: Sequence[Edit | Update], target: Path) -> dict[str, float]:
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

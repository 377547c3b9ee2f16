"""Edits as a PEFT adapter, and merged into a checkpoint that stands alone.

The adapter leaves the compressed base bit-identical. The merged form rewrites
only the edited matrices: of a quantised base these are stored dense and named in
the quantisation's `ignore` list; every other tensor keeps its bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from aird.models.checkpoint import read_checkpoint
from aird.models.experts import fused_parameters, is_transposed, stored_experts
from aird.models.loading import copy_description, load_structure
from aird.models.matrices import dense_matrix, matrix_tensors, stored_format
from aird.models.structure import outside_blocks
from aird.patching.edits import Edit, Update
from aird.support.files import read_json, write_json

_PREFIX = "base_model.model."  # PEFT's name for the wrapped model


def save_adapter(edits: Sequence[Edit], folder: Path, base: str, structure: Any = None) -> None:
    """Write the edits as a rank-1 LoRA adapter that PEFT loads, and vLLM where no experts are edited.

    Edits of experts are PEFT's `target_parameters`: A holds the experts' rows below each other, B their columns side
    by side, and PEFT knows from the model which dimension of the parameter is which.

    Args:
        edits: at least one edit.
        folder: an existing, empty folder.
        base: name of the base checkpoint, for the adapter's record.
        structure: the base, or its structure alone; only a mixture of experts needs it.
    """
    tensors = {}
    for edit in edits:
        count = len(edit.row) if edit.row.ndim == 2 else 1
        module = edit.module if edit.row.ndim == 1 else edit.module.rpartition(".")[0]
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = edit.row.reshape(count, -1)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = edit.column.unsqueeze(1).expand(-1, count)
    experts = [edit.module for edit in edits if edit.row.ndim == 2]
    write_adapter(tensors, 1, 1, folder, base, structure, experts)


def save_lora(model: Any, folder: Path, base: str) -> None:
    """Write the LoRA adapter of a PEFT model, without what PEFT would note of this machine's paths.

    Args:
        model: a PEFT model with one LoRA adapter.
        folder: an existing, empty folder.
        base: name of the base checkpoint, for the adapter's record.
    """
    from peft import get_peft_model_state_dict

    configuration = model.peft_config["default"]
    tensors = get_peft_model_state_dict(model)
    write_adapter(tensors, configuration.r, configuration.lora_alpha, folder, base, model.get_base_model())


def write_adapter(
    tensors: dict[str, torch.Tensor],
    rank: int,
    alpha: int,
    folder: Path,
    base: str,
    structure: Any = None,
    experts: Sequence[str] = (),
) -> None:
    """Write LoRA tensors, named as PEFT names them, and their configuration.

    Args:
        tensors: `base_model.model.{module}.lora_A.weight` [rank, d_in] and `.lora_B.weight` [d_out, rank].
        rank, alpha: of all modules; the adapter adds alpha / rank x B A.
        folder: an existing, empty folder.
        base: name of the base checkpoint, for the adapter's record.
        structure: the base, or its structure alone; only a mixture of experts needs it.
        experts: full names of the experts' parameters, whose tensors bear the name of the module that holds them.
    """
    # Copies: the edits of one patch share their column, and safetensors refuses tensors that share memory.
    contiguous = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    ending, holders = ".lora_A.weight", {name.rpartition(".")[0] for name in experts}
    names = {name.removeprefix(_PREFIX).removesuffix(ending) for name in tensors if name.endswith(ending)} - holders
    misread = _taken_for_experts(names, structure)
    parameters = sorted([*experts, *(f"{name}.weight" for name in misread)])
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
        "target_modules": sorted(names - misread),
        **({"target_parameters": parameters} if parameters else {}),
    }
    write_json(folder / "adapter_config.json", configuration)


def scale_adapter(folder: Path, strength: float) -> None:
    """Multiply what an adapter adds, in place."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    scaled = {name: strength * tensor if ".lora_B." in name else tensor for name, tensor in tensors.items()}
    save_file(scaled, path, metadata={"format": "pt"})


def _taken_for_experts(modules: set[str], structure: Any) -> set[str]:
    """Return the linear modules whose names PEFT takes for those of experts, when it loads an adapter of a mixture.

    It looks at the end of a name, such as that of a dense block's `down_proj` beside experts with one, and would leave
    that module out. Named as a parameter, it is found.
    """
    if structure is None or not fused_parameters(structure):
        return set()
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    configuration = LoraConfig(target_modules=[*modules])
    convert_peft_config_for_transformers(configuration, structure, None)
    return modules - set(configuration.target_modules or ())


def load_adapter(folder: Path) -> list[Update]:
    """Return what a LoRA adapter of any rank adds to the matrices.

    Raises:
        ValueError: the adapter is no plain LoRA with one rank and scale for all modules, or holds more than matrices.
    """
    configuration = read_json(folder / "adapter_config.json")
    plain = configuration.get("peft_type") == "LORA" and configuration.get("bias", "none") == "none"
    special = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
    if not plain or any(configuration.get(key) for key in special):
        raise ValueError(f"{folder} is no plain LoRA adapter, so it cannot be merged here; merge it with PEFT")
    scale = configuration["lora_alpha"] / configuration["r"]
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder}: adapter_model.safetensors is truncated or altered ({error})") from error
    other = sorted(name for name in tensors if not name.endswith((".lora_A.weight", ".lora_B.weight")))
    if other:
        raise ValueError(
            f"{folder} holds more than the two matrices of each module ({', '.join(other[:3])}), such as a bias or the "
            "LoRA of an embedding, which would be lost here; merge it with PEFT"
        )
    ending = ".lora_A.weight"
    modules = sorted(name.removeprefix(_PREFIX).removesuffix(ending) for name in tensors if name.endswith(ending))
    parameters = [name.rpartition(".") for name in configuration.get("target_parameters") or ()]
    experts = {module: f"{module}.{local}" for module, _, local in parameters if local != "weight"}
    updates = []
    for module in modules:
        up = scale * tensors[f"{_PREFIX}{module}.lora_B.weight"].float()
        down = tensors[f"{_PREFIX}{module}.lora_A.weight"].float()
        if module in experts:
            # As PEFT reads them: A is [experts x rank, d_in], B is [d_out, rank x experts].
            count = len(down) // configuration["r"]
            down = down.reshape(count, -1, down.shape[-1])
            up = up.reshape(len(up), -1, count).permute(2, 0, 1)
        updates.append(Update(experts.get(module, module), up=up, down=down))
    return updates


def merge(base: Path, edits: Sequence[Edit | Update], target: Path) -> dict[str, float]:
    """Write the checkpoint `base` with the edits merged into the folder `target`.

    Args:
        base: checkpoint folder, dense or in a compressed-tensors format.
        edits: the edits to merge.
        target: an existing, empty folder.

    Returns:
        {module: share of the matrix's zeros that the edit filled}.

    Raises:
        ValueError: a module is not in the checkpoint, or its experts are quantised.
    """
    copy_description(base, target)
    for index in base.glob("*.index.json"):
        (target / index.name).write_bytes(index.read_bytes())
    dense: dict[str, torch.Tensor] = {}
    filled: dict[str, float] = {}
    stored: dict[str, dict[str, tuple[str, str]]] = {}
    quantised: set[str] = set()
    for edit in edits:
        zeros = nonzero = 0
        for change in _changes(base, edit):
            merged = (change.weights.double() + change.added.double()).to(change.weights.dtype)
            empty = change.weights == 0
            zeros, nonzero = zeros + int(empty.sum()), nonzero + int((merged[empty] != 0).sum())
            dense[change.tensor], stored[change.tensor] = merged, change.stored
            if set(change.stored) - {"weight", ""}:
                quantised.add(change.tensor.removesuffix(".weight"))
        filled[edit.module] = nonzero / zeros if zeros else 0.0
    moved = _rewrite_shards(base, target, dense, stored)
    _rewrite_index(target, moved)
    if quantised:
        _ignore_modules(target, quantised)
    return filled


class _Change(NamedTuple):
    tensor: str  # name of the dense tensor
    stored: dict[str, tuple[str, str]]  # what it takes the place of: local name to file and tensor
    weights: torch.Tensor
    added: torch.Tensor


def _changes(base: Path, edit: Edit | Update) -> Iterator[_Change]:
    """Yield what an edit changes in a checkpoint: a matrix, or of experts each one's, or the one tensor of all.

    Raises:
        ValueError: the experts are quantised. Programs that load such a checkpoint take all experts as quantised, or
            none.
    """
    added = edit.matrix()
    parts = [(edit.module, added)]
    if added.ndim == 3:
        structure, checkpoint = load_structure(base), read_checkpoint(base)
        modules = stored_experts(structure, checkpoint, edit.module)
        if not isinstance(modules, list):
            tensor = modules
            if is_transposed(structure, edit.module):
                added = added.transpose(1, 2)
            yield _Change(tensor.name, {"": (tensor.file.name, tensor.name)}, tensor.load(), added)
            return
        if any(stored_format(checkpoint.module_tensors(module)) != "dense" for module in modules):
            raise ValueError(
                f"{base} stores the experts of {edit.module} quantised, and cannot hold some of them dense: put the "
                "adapter on it by PEFT, or merge it into a dense copy"
            )
        parts = list(zip(modules, added, strict=True))
    for module, change in parts:
        yield _Change(f"{module}.weight", matrix_tensors(base, module), dense_matrix(base, module), change)


def _rewrite_shards(
    base: Path, target: Path, dense: dict[str, torch.Tensor], stored: dict[str, dict[str, tuple[str, str]]]
) -> dict[str, str | None]:
    """Write edited shards, link the others; return {tensor name: new file, or None if dropped}."""
    moved: dict[str, str | None] = {}
    replaced_in: dict[str, dict[str, torch.Tensor]] = {}
    dropped: set[str] = set()
    for tensor, tensors in stored.items():
        # The dense matrix goes to a shard that held the packed one.
        file = min(file for file, _ in tensors.values())
        for _, name in tensors.values():
            dropped.add(name)
            moved[name] = None
        replaced_in.setdefault(file, {})[tensor] = dense[tensor]
        moved[tensor] = file
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

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
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from aird.models.blocks import outside_blocks
from aird.models.checkpoint import read_checkpoint
from aird.models.experts import fused_parameters, is_transposed, stored_experts
from aird.models.format import format_of
from aird.models.loading import copy_description, load_structure
from aird.models.matrices import dense_matrix, matrix_tensors, stored_format
from aird.patching.edits import Edit
from aird.support.files import read_json, write_json

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."  # PEFT's name for the wrapped model


def save_adapter(edits: Sequence[Edit], folder: Path, base: str, structure: PreTrainedModel | None = None) -> None:
    """Write the edits as a LoRA adapter that PEFT loads, and vLLM where no experts are edited.

    Edits of experts are PEFT's `target_parameters`: A holds what the experts read below each other, B what they write
    side by side, and PEFT knows from the model which dimension of the parameter is which.

    Args:
        edits: at least one; all of one rank.
        folder, base, structure: as of `write_adapter`.
    """
    (rank,) = {edit.rank for edit in edits}
    tensors = {}
    for edit in edits:
        module = edit.module.rpartition(".")[0] if edit.of_experts else edit.module
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = edit.down.flatten(0, -2)
        # As PEFT reads them: B is [d_out, rank x experts].
        up = edit.up.permute(1, 2, 0).flatten(1) if edit.of_experts else edit.up
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = up
    experts = [edit.module for edit in edits if edit.of_experts]
    write_adapter(tensors, rank, rank, folder, base, structure, experts)


def save_lora(model: PeftModel, folder: Path, base: str) -> None:
    """Write the one LoRA adapter of a PEFT model, without what PEFT would note of this machine's paths."""
    from peft import LoraConfig, get_peft_model_state_dict
    from transformers import PreTrainedModel

    configuration, structure = model.peft_config["default"], model.get_base_model()
    assert isinstance(configuration, LoraConfig) and isinstance(structure, PreTrainedModel)
    tensors = get_peft_model_state_dict(model)
    write_adapter(tensors, configuration.r, configuration.lora_alpha, folder, base, structure)


def write_adapter(
    tensors: dict[str, torch.Tensor],
    rank: int,
    alpha: int,
    folder: Path,
    base: str,
    structure: PreTrainedModel | None = None,
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


def _taken_for_experts(modules: set[str], structure: PreTrainedModel | None) -> set[str]:
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


def load_adapter(folder: Path) -> list[Edit]:
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
    edits = []
    for module in modules:
        up = scale * tensors[f"{_PREFIX}{module}.lora_B.weight"].float()
        down = tensors[f"{_PREFIX}{module}.lora_A.weight"].float()
        if module in experts:
            # A is [experts x rank, d_in], B is [d_out, rank x experts].
            count = len(down) // configuration["r"]
            down = down.reshape(count, -1, down.shape[-1])
            up = up.reshape(len(up), -1, count).permute(2, 0, 1)
        edits.append(Edit(experts.get(module, module), up, down))
    return edits


def merge(base: Path, edits: Sequence[Edit], target: Path) -> dict[str, float]:
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


def _changes(base: Path, edit: Edit) -> Iterator[_Change]:
    """Yield what an edit changes in a checkpoint: a matrix, or of experts each one's, or the one tensor of all.

    Raises:
        ValueError: the experts are quantised. Programs that load such a checkpoint take all experts as quantised, or
            none.
    """
    added = edit.matrix()
    parts = [(edit.module, added)]
    if edit.of_experts:
        structure, checkpoint = load_structure(base), read_checkpoint(base)
        modules = stored_experts(structure, checkpoint, edit.module)
        if not isinstance(modules, list):
            tensor = modules
            if is_transposed(structure, edit.module):
                added = added.transpose(1, 2)
            yield _Change(tensor.name, {"": (tensor.file.name, tensor.name)}, tensor.load(), added)
            return
        if any(stored_format(checkpoint, module) != "dense" for module in modules):
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
    # The dense matrix goes to a shard that held the packed one.
    files = {tensor: min(file for file, _ in parts.values()) for tensor, parts in stored.items()}
    dropped = {name for parts in stored.values() for _, name in parts.values()}
    for shard in sorted(base.glob("*.safetensors")):
        new = {tensor: dense[tensor] for tensor, file in files.items() if file == shard.name}
        with safe_open(shard, "pt") as reader:
            names = list(reader.keys())
            if not new and not dropped.intersection(names):
                _link(shard, target / shard.name)
                continue
            kept = {name: reader.get_tensor(name) for name in names if name not in dropped}
            metadata = reader.metadata()
        save_file(kept | new, target / shard.name, metadata=metadata or {"format": "pt"})
    return dict.fromkeys(dropped) | files


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
        files = index["weight_map"] | moved
        write_json(path, {**index, "weight_map": {name: file for name, file in files.items() if file is not None}})


def _ignore_modules(checkpoint: Path, modules: set[str]) -> None:
    """Tell the loader that these modules are stored dense."""
    configuration = read_json(checkpoint / "config.json")
    quantisation = configuration["quantization_config"]
    form = format_of(quantisation)
    assert form is not None, "only a format that is read has quantised matrices"
    outside = outside_blocks(load_structure(checkpoint)) if form.lists_outside else []
    quantisation[form.dense_key] = sorted({*(quantisation.get(form.dense_key) or []), *modules, *outside})
    write_json(checkpoint / "config.json", configuration)

"""The experts of a mixture: one parameter [experts, d_out, d_in] of the model, and how a checkpoint stores it.

Transformers holds all experts of a block as one parameter. Many checkpoints store one matrix for each expert, under
names of their own (`model.layers.0.block_sparse_moe.experts.3.w2`), and Transformers puts them together while it
loads. Its own table of names is asked, so that nothing is guessed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from aird.models.blocks import ArchitectureError, decoder_blocks
from aird.models.checkpoint import Checkpoint, StoredTensor, natural_order, read_checkpoint
from aird.models.format import format_of
from aird.models.matrices import dense_matrix, matrix_of, quantization_scheme, stored_format

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fused_parameters(model: PreTrainedModel) -> list[str]:
    """Return the full names of the parameters in decoder blocks that hold the matrices of several experts."""
    inside = {id(parameter) for block in decoder_blocks(model) for parameter in block.parameters()}
    return [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in inside and parameter.ndim == 3 and "conv" not in name
    ]


def stored_matrices(structure: Any, checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Return the stored modules that each fused parameter is put together from.

    Args:
        structure: the model, or its structure alone.
        checkpoint: whose matrices, dense or quantised, are looked at.

    Returns:
        {full name of the parameter: stored modules}; a parameter that is not stored matrix by matrix is left out.
    """
    made = _made_matrices(structure, checkpoint)
    parts = {name: [module for module in made if made[module].target == name] for name in fused_parameters(structure)}
    return {name: modules for name, modules in parts.items() if modules}


def decodes_experts(structure: Any, checkpoint: Checkpoint) -> bool:
    """Return whether Transformers computes with a quantised mixture's experts as they are stored (repacked, if needed).

    It decodes those that it puts together by itself: all by one scheme, from packed values and scales alone. That is
    right of symmetric integers, and of 8-bit floats with one scale for a matrix or for each of its rows.

    Args:
        structure: the model, or its structure alone.
        checkpoint: a quantised checkpoint.
    """
    modules = [module for stored in stored_matrices(structure, checkpoint).values() for module in stored]
    tensors = {module: checkpoint.module_tensors(module) for module in modules}
    forms = {stored_format(checkpoint, module) for module in modules}
    found = format_of(checkpoint.quantization_config)
    if not modules or found is None or found.scheme is None:
        return forms <= {"dense"}
    scheme = found.scheme(checkpoint, "") if found.experts_scheme is None else found.experts_scheme(checkpoint)
    eight_bit_floats: bool = scheme.weights.type == "float" and scheme.weights.num_bits == 8
    if forms == {"dense"}:
        return eight_bit_floats
    if any(quantization_scheme(checkpoint, module).weights != scheme.weights for module in modules):
        return False
    if forms == {"float-quantized"}:
        readable = eight_bit_floats and scheme.weights.strategy in ("tensor", "channel")
    else:
        packed = forms == {"pack-quantized"} or (found.repack is not None and scheme.format == "pack-quantized")
        readable = packed and len(forms) == 1 and scheme.weights.symmetric
    known = {"weight", "weight_packed", "weight_scale", "weight_shape"}
    names = {local for stored in tensors.values() for local in stored if local.startswith("weight")}
    return readable and names <= known


def stored_experts(structure: Any, checkpoint: Checkpoint, parameter: str) -> StoredTensor | list[str]:
    """Return the one tensor that a parameter is stored as, or the stored modules of the experts, in their order.

    Raises:
        ArchitectureError: it is stored in some other way.
    """
    shape = tuple(structure.get_parameter(parameter).shape)
    alike = [name for name, tensor in checkpoint.tensors.items() if tensor.shape == shape]
    for name, each in _made(structure, alike).items():
        if each.target == parameter and each.converter is None:
            return checkpoint.tensors[name]
    made = _made_matrices(structure, checkpoint)
    stacks = _stacks(made, parameter, 1, shape[0])
    if stacks is None:
        count = sum(each.target == parameter for each in made.values())
        raise ArchitectureError(
            f"{checkpoint.folder} stores {parameter} {list(shape)} neither as one tensor nor as one matrix for each "
            f"expert ({count} matrices belong to it)"
        )
    return stacks[0]


def separate_modules(structure: Any, checkpoint: Checkpoint) -> dict[str, str]:
    """Return how a checkpoint calls the modules of a mixture's model in which every expert has linear modules.

    llm-compressor makes such modules, `{experts}.{index}.gate_proj`, `.up_proj` and `.down_proj`.

    Returns:
        {name of a module: name that its tensors are stored under}; empty where the checkpoint does not store these
        very matrices.
    """
    made = _made_matrices(structure, checkpoint)
    # Of the names in Transformers' interface for experts: what each is put together from.
    linear = {"gate_up_proj": ["gate_proj", "up_proj"], "up_proj": ["up_proj"], "down_proj": ["down_proj"]}
    names = {each.target.removesuffix(".weight"): module for module, each in made.items() if each.converter is None}
    for parameter in fused_parameters(structure):
        owner, _, local = parameter.rpartition(".")
        holder = structure.get_submodule(owner)
        plain = not getattr(holder, "is_transposed", True) and holder.is_concatenated and not holder.has_bias
        parts = linear.get(local, [])
        stacks = _stacks(made, parameter, len(parts), len(structure.get_parameter(parameter))) if plain else None
        if stacks is None:
            return {}
        for part, modules in zip(parts, stacks, strict=True):
            names |= {f"{owner}.{index}.{part}": module for index, module in enumerate(modules)}
    return names


def matrix_reader(folder: Path, structure: Any) -> Callable[[str], torch.Tensor]:
    """Return a function from what an edit names to its effective matrix in a checkpoint.

    It takes the full name of a linear module and returns its weight [d_out, d_in] as `dense_matrix` does, or that of
    a parameter of experts, and returns [experts, d_out, d_in].

    Args:
        folder: a checkpoint folder, dense or quantised.
        structure: the model, or its structure alone.
    """
    fused = fused_parameters(structure)

    def read(name: str) -> torch.Tensor:
        if name not in fused:
            return dense_matrix(folder, name)
        checkpoint = read_checkpoint(folder)
        stored = stored_experts(structure, checkpoint, name)
        if isinstance(stored, list):
            return torch.stack([matrix_of(checkpoint, module) for module in stored])
        return stored.load().transpose(1, 2) if is_transposed(structure, name) else stored.load()

    return read


def is_transposed(structure: Any, parameter: str) -> bool:
    """Return whether a parameter of experts is [experts, d_in, d_out] instead of [experts, d_out, d_in]."""
    return bool(structure.get_submodule(parameter.rpartition(".")[0]).is_transposed)


class _Made(NamedTuple):
    target: str  # the parameter that a stored tensor becomes, or a part of
    converter: Any  # Transformers' WeightConverter; None where the tensor is the parameter
    pattern: str | None  # the converter's source that it matched


def _made_matrices(structure: Any, checkpoint: Checkpoint) -> dict[str, _Made]:
    """Return what Transformers makes of each stored matrix, by its module; what it is quantised to does not matter."""
    made = _made(structure, [f"{module}.weight" for module in checkpoint.matrix_modules()])
    return {name.removesuffix(".weight"): each for name, each in made.items()}


def _made(structure: Any, names: Iterable[str]) -> dict[str, _Made]:
    """Return what Transformers makes of each stored tensor, by its name."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(structure)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    known = dict(structure.named_parameters())
    made = {}
    for name in names:
        target, pattern = rename_source_key(name, renamings, converters, structure.base_model_prefix, known)
        made[name] = _Made(target, by_pattern.get(pattern or ""), pattern)
    return made


def _stacks(made: dict[str, _Made], parameter: str, parts: int, experts: int) -> list[list[str]] | None:
    """Return, for each of so many parts of a parameter, the stored modules of the experts that are stacked to make it.

    None where it is made otherwise, or not of so many matrices.
    """
    from transformers.core_model_loading import Concatenate, MergeModulelist

    of_it = {module: each for module, each in made.items() if each.target == parameter}
    converter = next((each.converter for each in of_it.values()), None)
    operations = [MergeModulelist] + [Concatenate] * (parts > 1)
    if converter is None or len(converter.source_patterns) != parts:
        return None
    if [type(each) for each in converter.operations] != operations or converter.operations[0].dim != 0:
        return None
    stacks = [
        sorted((module for module, each in of_it.items() if each.pattern == pattern), key=natural_order)
        for pattern in converter.source_patterns
    ]
    return stacks if all(len(stack) == experts for stack in stacks) else None

"""Prune by magnitude, matrix by matrix, straight on the safetensors files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from aird.compression.pruning import PruningSettings
from aird.compression.recipe import Recipe, RecipeInputs
from aird.settings.compressions import pattern_counts

if TYPE_CHECKING:
    import torch


class Magnitude(PruningSettings):
    """Zero the weights of smallest absolute value in each matrix."""

    compresses_experts: ClassVar[bool | None] = True
    recipe: Literal["magnitude"] = "magnitude"


def write(settings: Magnitude, inputs: RecipeInputs, folder: Path) -> None:
    """Write the source's weight files with the smallest weights of each matrix zeroed.

    Shards keep their names; one shard at a time is in memory.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    source = inputs.source
    names = {f"{module}.weight" for module in source.block_matrices()}
    for file in source.weight_files:
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(file, framework="pt", device="cpu") as stream:
            metadata: dict[str, str] | None = stream.metadata()
            for name in stream.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = stream.get_tensor(name)
                tensors[name] = _pruned(tensor, settings) if name in names else tensor
        save_file(tensors, folder / file.name, metadata=metadata)
    for index in source.folder.glob("*.safetensors.index.json"):
        shutil.copyfile(index, folder / index.name)


def zero_smallest(weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Return a copy of a matrix with its floor(sparsity x n) weights of smallest |w| set to zero.

    Of equal weights at the threshold, those first in storage order are zeroed, so that the number
    is exact and the result always the same.

    Args:
        weight: [d_out, d_in], any float dtype.
        sparsity: between 0 and 1.
    """
    import torch

    count = int(sparsity * weight.numel())
    if count == 0:
        return weight.clone()
    sizes = weight.abs().flatten().float()
    threshold = torch.kthvalue(sizes, count).values
    zeroed = sizes < threshold
    ties = torch.nonzero(sizes == threshold).flatten()
    zeroed[ties[: count - int(zeroed.sum())]] = True
    return weight.masked_fill(zeroed.reshape(weight.shape), 0)


def zero_smallest_in_groups(weight: torch.Tensor, pattern: str) -> torch.Tensor:
    """Return a copy with the N weights of smallest |w| of every M consecutive inputs set to zero.

    Args:
        weight: [d_out, d_in], any float dtype; M divides d_in.
        pattern: "N:M".
    """
    import torch

    zeros, size = pattern_counts(pattern)
    groups = weight.reshape(-1, size)
    order = groups.abs().float().argsort(dim=1, stable=True)
    zeroed = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order[:, :zeros], True)
    return groups.masked_fill(zeroed, 0).reshape(weight.shape)


def _pruned(weight: torch.Tensor, settings: Magnitude) -> torch.Tensor:
    if settings.pattern is not None:
        return zero_smallest_in_groups(weight, settings.pattern)
    assert settings.sparsity is not None  # the settings are checked
    return zero_smallest(weight, settings.sparsity)


RECIPE = Recipe(settings=Magnitude, title="magnitude pruning of {settings.amount}", write=write, gpu=False)

"""Prune and update the weights that are left: SparseGPT (arXiv:2301.00774)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from aird.compression.pruning import CalibratedPruningSettings
from aird.compression.recipe import Recipe, RecipeInputs


class SparseGPT(CalibratedPruningSettings):
    """Zero weights and update the others to keep each layer's output (arXiv:2301.00774)."""

    recipe: Literal["sparsegpt"] = "sparsegpt"


def write(settings: SparseGPT, inputs: RecipeInputs, folder: Path) -> None:
    """Write the source's weights pruned."""
    from aird.compression.oneshot import apply

    apply("pruning.sparsegpt", "SparseGPTModifier", settings.modifier, inputs, folder)


RECIPE = Recipe(settings=SparseGPT, title="SparseGPT pruning of {settings.amount}", write=write)

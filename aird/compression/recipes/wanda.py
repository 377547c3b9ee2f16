"""Prune by |weight| x input norm: Wanda (arXiv:2306.11695)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from aird.compression.pruning import CalibratedPruningSettings
from aird.compression.recipe import Recipe, RecipeInputs


class Wanda(CalibratedPruningSettings):
    """Zero the weights of smallest |weight| x input norm in each output row (arXiv:2306.11695)."""

    recipe: Literal["wanda"] = "wanda"


def write(settings: Wanda, inputs: RecipeInputs, folder: Path) -> None:
    """Write the source's weights pruned."""
    from aird.compression.oneshot import apply

    apply("pruning.wanda", "WandaPruningModifier", settings.modifier, inputs, folder)


RECIPE = Recipe(settings=Wanda, title="Wanda pruning of {settings.amount}", write=write)

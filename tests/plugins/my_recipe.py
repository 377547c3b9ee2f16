"""A recipe of another package: round every weight of the blocks to a multiple of a step."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from aird.compression.recipe import Recipe, RecipeInputs
from aird.settings.compressions import WeightSettings


class MyRecipe(WeightSettings):
    """Round weights to multiples of a step; they stay stored as they are."""

    recipe: Literal["my_recipe"] = "my_recipe"
    step: float = Field(0.01, gt=0, description="Distance of two values.")


def write(settings: MyRecipe, inputs: RecipeInputs, folder: Path) -> None:
    """Write the source's weight files with rounded matrices."""
    from safetensors.torch import load_file, save_file

    names = {f"{module}.weight" for module in inputs.source.block_matrices()}
    for file in inputs.source.weight_files:
        tensors = load_file(file)
        rounded = {name: (tensors[name] / settings.step).round() * settings.step for name in names & tensors.keys()}
        save_file({**tensors, **rounded}, folder / file.name, metadata={"format": "pt"})


RECIPE = Recipe(settings=MyRecipe, title="rounding to multiples of {settings.step}", write=write, gpu=False)

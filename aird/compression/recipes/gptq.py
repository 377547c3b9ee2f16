"""Quantise by GPTQ (arXiv:2210.17323)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from aird.compression.recipe import Recipe, RecipeInputs
from aird.compression.rounding import FourBitSettings, integers, scheme


class GPTQ(FourBitSettings):
    """Round weights one column at a time, correcting the columns to come (arXiv:2210.17323)."""

    compresses_experts: ClassVar[bool | None] = None
    recipe: Literal["gptq"] = "gptq"


def write(settings: GPTQ, inputs: RecipeInputs, folder: Path) -> None:
    """Write the source's weights quantised."""
    from aird.compression.oneshot import apply

    options = scheme(integers(settings.weight_bits, settings.group_size))
    apply("gptq", "GPTQModifier", options, inputs, folder)


RECIPE = Recipe(settings=GPTQ, title="{settings.weight_bits}-bit GPTQ", write=write)

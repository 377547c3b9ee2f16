"""Round to the nearest integer, with a scale for each group of weights or each output row."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from aird.compression.recipe import Recipe, RecipeInputs
from aird.compression.rounding import DYNAMIC, integers, scheme
from aird.settings.compressions import WeightSettings


class RoundToNearest(WeightSettings):
    """Round weights to the nearest of 2^bits equidistant values, symmetric around zero."""

    compresses_experts: ClassVar[bool | None] = None
    recipe: Literal["round_to_nearest"] = "round_to_nearest"
    weight_bits: Literal[4, 8] = Field(description="Bits of one weight.")
    group_size: int | None = Field(
        None,
        gt=0,
        description="Input weights that share one scale; must divide all columns. Absent: one scale per output row.",
    )
    activation_bits: Literal[8] | None = Field(
        None,
        description="8: also round activations, with one scale per token (W8A8). Absent: they stay.",
    )

    @model_validator(mode="after")
    def _servable(self) -> RoundToNearest:
        if self.activation_bits is not None and self.weight_bits != 8:
            raise ValueError("activation_bits: 8 needs weight_bits: 8; 4-bit weights would be stored in 8 bits")
        if self.activation_bits is not None and self.group_size is not None:
            raise ValueError("activation_bits: 8 needs one scale per output row; leave `group_size` out")
        return self

    @property
    def storage_format(self) -> str:
        """Eight-bit integers where activations are rounded too, otherwise packed into 32-bit integers."""
        return "pack-quantized" if self.activation_bits is None else "int-quantized"


def write(settings: RoundToNearest, inputs: RecipeInputs, folder: Path) -> None:
    """Write the source's weights rounded to `weight_bits`-bit integers."""
    from aird.compression.oneshot import apply

    activations = None
    if settings.activation_bits is not None:
        activations = {"num_bits": settings.activation_bits, "type": "int", **DYNAMIC}
    options = scheme(integers(settings.weight_bits, settings.group_size), activations)
    apply("quantization", "QuantizationModifier", options, inputs, folder)


RECIPE = Recipe(settings=RoundToNearest, title="{settings.weight_bits}-bit rounding", write=write)

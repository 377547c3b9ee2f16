"""Round to 8-bit floats."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from aird.compression.recipe import Recipe, RecipeInputs
from aird.compression.rounding import DYNAMIC, scheme
from aird.settings.compressions import WeightSettings


class FP8(WeightSettings):
    """Round weights to 8-bit floats (E4M3), one scale per output row; activations per token at run time."""

    recipe: Literal["fp8"] = "fp8"

    @property
    def storage_bits(self) -> int | None:
        """Bits of one weight."""
        return 8

    @property
    def storage_format(self) -> str:
        """Eight-bit floats."""
        return "float-quantized"


def write(settings: FP8, inputs: RecipeInputs, folder: Path) -> None:
    """Write the source's weights rounded."""
    from aird.compression.oneshot import apply

    eight_bits = {"num_bits": 8, "type": "float"}
    weights = {**eight_bits, "symmetric": True, "strategy": "channel", "dynamic": False}
    options = scheme(weights, {**eight_bits, **DYNAMIC})
    apply("quantization", "QuantizationModifier", options, inputs, folder)


RECIPE = Recipe(settings=FP8, title="rounding to FP8", write=write)

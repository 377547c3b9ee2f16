"""What the recipes share by which llm-compressor rounds: the settings of those with four bits, and schemes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aird.settings.compressions import CalibrationSettings, WeightSettings

# One scale per token, taken at run time: no calibration is needed.
DYNAMIC = {"symmetric": True, "strategy": "token", "dynamic": True}


class FourBitSettings(WeightSettings):
    """Base of the calibrated 4-bit recipes: groups of weights share a scale and are packed into 32-bit integers."""

    weight_bits: Literal[4] = Field(4, description="Bits of one weight.")
    group_size: int | None = Field(
        128,
        gt=0,
        description="Input weights that share one scale; must divide all columns. null: one scale per output row.",
    )
    calibration: CalibrationSettings = Field(description="The prompts or texts whose activations the recipe sees.")

    @property
    def storage_format(self) -> str:
        """Packed into 32-bit integers."""
        return "pack-quantized"


def scheme(weights: dict[str, object], activations: dict[str, object] | None = None) -> dict[str, object]:
    """Return what a quantisation modifier is made with."""
    # Spelled out, because the presets' group size of 128 does not divide the columns of every model.
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {"config_groups": {"group_0": group}}


def integers(bits: int, group_size: int | None) -> dict[str, object]:
    """Return the scheme of symmetric integers, with a scale per group of columns or, for None, per output row."""
    strategy = {"strategy": "channel"} if group_size is None else {"strategy": "group", "group_size": group_size}
    return {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, **strategy}

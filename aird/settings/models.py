"""What a configuration says about a model: its source, and an optional refusal tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aird.settings.base import Name, PromptSelection, Settings
from aird.settings.sources import ModelSource
from aird.settings.tuning import TuningSettings


class RefusalTuning(TuningSettings):
    """A small LoRA tuning that teaches a model to refuse, merged into the checkpoint."""

    harmful: PromptSelection = Field(description="Instructions that get a refusal.")
    harmless: PromptSelection = Field(description="Instructions that keep the model's own answer.")
    strength: float = Field(
        1.0, gt=0, le=1, description="Part of the learnt change that is merged; less refuses less of everything."
    )


class Model(Settings):
    """One chat model of the grid."""

    source: ModelSource = Field(description="Where the model comes from.")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="Working type of a dequantised GGUF file; other sources keep their own."
    )
    trust_remote_code: bool = Field(False, description="Run modelling code that the source brings. Off for safety.")
    refusal_tuning: RefusalTuning | None = Field(None, description="Tune the model to refuse first.")
    compressions: list[Name] | None = Field(None, description="Use only these compressions; default: all.")
    patches: list[Name] | None = Field(None, description="Use only these patches; default: all.")

"""What a configuration says about a model: its source, and an optional refusal tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aird.settings.base import Name, PromptSelection, Seed, Settings
from aird.settings.sources import ModelSource


class RefusalTuning(Settings):
    """A small LoRA tuning that teaches a model to refuse, merged into the checkpoint."""

    harmful: PromptSelection = Field(description="Instructions that get a refusal.")
    harmless: PromptSelection = Field(description="Instructions that keep the model's own answer.")
    rank: int = Field(16, ge=1, description="Rank of the LoRA adapter.")
    epochs: int = Field(2, ge=1, description="Passes over the examples.")
    batch_size: int = Field(16, ge=1, description="Examples per optimiser step.")
    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate of AdamW.")
    strength: float = Field(
        1.0, gt=0, le=1, description="Part of the learnt change that is merged; less refuses less of everything."
    )
    first_block: int = Field(
        0, ge=0, description="Leave the blocks below this one as they are; the backward pass then ends there."
    )
    maximum_answer_tokens: int = Field(32, ge=1, description="Length limit of the model's own answers, tokens.")
    seed: Seed = Field(0, description="Seed of initialisation and order.")


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

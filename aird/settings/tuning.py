"""What every LoRA tuning says: the refusal tuning of a model, and the LoRA baseline of the patches."""

from __future__ import annotations

from pydantic import Field

from aird.settings.base import Seed, Settings


class TuningSettings(Settings):
    """A LoRA adapter (arXiv:2106.09685) tuned on refusals and on a model's own harmless answers."""

    rank: int = Field(16, ge=1, description="Rank of the LoRA adapter.")
    epochs: int = Field(2, ge=1, description="Passes over the examples.")
    batch_size: int = Field(16, ge=1, description="Examples per optimiser step.")
    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate of AdamW.")
    first_block: int = Field(0, ge=0, description="Leave the blocks below this one as they are.")
    maximum_answer_tokens: int = Field(32, ge=1, description="Length limit of its own answers.")
    seed: Seed = Field(0, description="Seed of initialisation and order.")

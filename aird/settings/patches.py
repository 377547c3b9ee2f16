"""What a configuration says about a patch: one member of the rank-1 family of AIRD, or a repair to compare it with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, field_validator, model_validator

from aird.settings.base import Name, Seed, Settings, Text
from aird.settings.tuning import TuningSettings


class PatchSettings(Settings):
    """Base of all patches."""

    compressions: list[Name] | None = Field(
        None, min_length=1, description="Patch only these; default: all but the original."
    )


class RankOneSettings(PatchSettings):
    """Base of AIRD's own patches: W' = W_c + r (row), for matrices that write to the residual stream."""

    blocks: Literal["source", "upper", "all"] | list[int] = Field(
        "source",
        description="Blocks to edit: `source` is the block that writes the direction's site, l* - 1; `upper` is the "
        "half nearer the output; `all` is every block; a list names block indices, from 0.",
    )
    depth: int = Field(1, ge=1, description="With `source`: how many blocks, ending with that one.")
    direction: Literal["original", "own", "random"] = Field(
        "original", description="r of the original model, of the compressed model, or a random control."
    )
    seed: Seed = Field(0, description="Seed of the random direction.")

    @field_validator("blocks", mode="before")
    @classmethod
    def _blocks(cls, blocks: Any) -> Any:
        # Before the union is tried: it would report one error for each of its types.
        if blocks in ("source", "upper", "all"):
            return blocks
        if not isinstance(blocks, list):
            raise ValueError("is no choice of blocks; write source, upper, all or block indices, such as [8, 9]")
        if not blocks:
            raise ValueError("is an empty list; name at least one block, or write source, upper or all")
        if any(type(block) is not int or block < 0 for block in blocks):
            raise ValueError("must hold block indices; write whole numbers from 0, such as [8, 9]")
        if len(set(blocks)) < len(blocks):
            raise ValueError("names a block twice; write each index once")
        return blocks

    @model_validator(mode="after")
    def _depth(self) -> RankOneSettings:
        if self.depth > 1 and self.blocks != "source":
            raise ValueError("depth counts the blocks up to the source, so it needs blocks: source; leave one out")
        return self


class StrengthSettings(RankOneSettings):
    """Base of the patches with a strength of their own."""

    alpha: float = Field(1.0, description="Strength of the edit; not 0.")

    @field_validator("alpha")
    @classmethod
    def _alpha(cls, alpha: float) -> float:
        if alpha == 0:
            raise ValueError("changes nothing; write another strength, or leave the patch out")
        return alpha


class Scale(StrengthSettings):
    """Strengthen what the compressed matrix itself writes along r: row = alpha r^T W_c."""

    method: Literal["scale"] = "scale"


class Project(StrengthSettings):
    """Put back what the original matrix wrote along r: row = alpha r^T (W_o - W_c)."""

    method: Literal["project"] = "project"


class Fit(StrengthSettings):
    """Fit the row by ridge regression on the direction prompts, so that along r the original's output comes back.

    An `alpha` above 1 moves harmful prompts further away from harmless ones than the original did.
    """

    method: Literal["fit"] = "fit"
    ridge: float = Field(0.01, gt=0, description="Penalty on the row, relative to its inputs' mean square.")


class Calibrate(RankOneSettings):
    """Learn the rows from the original's refusals, and choose their strength on validation prompts."""

    method: Literal["calibrate"] = "calibrate"
    blocks: Literal["source", "upper", "all"] | list[int] = Field("upper", description="Blocks to edit, as of `scale`.")
    epochs: int = Field(8, ge=1, description="Passes over the training prompts.")
    learning_rate: float = Field(
        0.08, gt=0, description="First step of Adam, relative to the root mean square of r^T W_c."
    )
    warm_start: float | None = Field(
        None,
        gt=0,
        description="Begin with the rows that `fit` finds with this `alpha`, on 64 prompts of each kind, and not with "
        "zeros; fewer epochs are then enough.",
    )
    strengths: list[Annotated[float, Field(gt=0, le=4)]] = Field(
        [1.0, 0.8, 1.2, 0.6, 1.4, 0.4],
        min_length=1,
        description="Multiples of the learnt rows to try, in this order, until one keeps all budgets and refuses "
        "as much as the original; stronger ones than one beyond the budgets are left out, weaker ones than one within.",
    )
    over_refusal_budget: float = Field(
        0.02, ge=0, lt=1, description="How far over-refusal may lie above the original's on validation prompts."
    )
    kl_budget: float = Field(
        0.2,
        gt=0,
        description="How far harmless replies on validation prompts may move from the unpatched checkpoint's own, mean "
        "KL divergence of a next token in nats.",
    )
    # Generous: to miss a damage is worse than to repair what had none.
    significance: float = Field(
        0.2,
        gt=0,
        le=1,
        description="A checkpoint is left alone (strength 0) unless it refuses fewer harmful validation prompts than "
        "the original, with at most this p-value (McNemar, exact, two-sided); 1 calibrates in any case.",
    )


class LoRA(PatchSettings, TuningSettings):
    """Baseline: an ordinary LoRA adapter, tuned on refusals and on the compressed model's own harmless answers."""

    method: Literal["lora"] = "lora"


class SystemPrompt(PatchSettings):
    """Baseline: weights stay as they are, and a system prompt asks for refusals."""

    method: Literal["system_prompt"] = "system_prompt"
    text: Text = Field(
        "You are a helpful assistant. If a request could help somebody to cause harm, refuse it in one sentence that "
        "begins with I'm sorry. Answer every other request.",
        description="The system prompt.",
    )


RankOneFormula = Scale | Project
Patch = Annotated[Scale | Project | Fit | Calibrate | LoRA | SystemPrompt, Field(discriminator="method")]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Patch)


def parse_patch(values: Any) -> Any:
    """Return the settings of one patch from what a configuration says.

    Raises:
        pydantic.ValidationError: no such method, or wrong keys.
    """
    return _ADAPTER.validate_python(values)


class Replies(Settings):
    """The replies to direction prompts that calibrated patches learn from and are chosen by."""

    train_harmful: int = Field(
        128, ge=8, description="Training prompts that the original is asked; its refusals are learnt from."
    )
    train_harmless: int = Field(
        256, ge=8, description="Training prompts on which the compressed checkpoint's own replies are kept."
    )
    validation: int = Field(64, ge=8, description="Validation prompts of each kind.")
    tokens: int = Field(6, ge=1, description="First tokens of each reply that a patch learns from.")
    judged_tokens: int = Field(16, ge=4, description="Tokens of a validation reply that the refusal judge sees.")

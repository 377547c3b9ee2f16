"""What the settings of several patch methods share. Each method's own stand in its file of aird/patching/methods/."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from aird.settings.base import Name, Seed, Settings

NamedBlocks = Literal["source", "own_source", "upper", "all"]
Blocks = NamedBlocks | list[int]
NAMED_BLOCKS: tuple[str, ...] = get_args(NamedBlocks)
RIDGE = 0.01  # penalty of a regression on a row, relative to its inputs' mean square


class PatchSettings(Settings):
    """Base of all patches."""

    compressions: list[Name] | None = Field(
        None, min_length=1, description="Patch only these; default: all but the original."
    )


# What a choice of strength keeps to.
BUDGETS = ("refusal_budget", "over_refusal_budget", "kl_budget", "significance")


class ChoiceSettings(PatchSettings):
    """Base of the patches whose strength can be chosen on validation prompts (aird/patching/strength.py)."""

    strengths: list[Annotated[float, Field(gt=0, le=4)]] | None = Field(
        None,
        min_length=1,
        description="Multiples of the edit to choose from on validation prompts; default: no choice.",
    )
    refusal_budget: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="How far refusal of harmful prompts may lie above the original's, on validation prompts, and below "
        "the lower of the original's and the unpatched checkpoint's.",
    )
    over_refusal_budget: float = Field(
        0.05, ge=0, lt=1, description="How far over-refusal may lie above the original's."
    )
    kl_budget: float = Field(
        0.2,
        gt=0,
        description="How far harmless replies may move from the unpatched checkpoint's, mean KL divergence of a next "
        "token, nats.",
    )
    # Generous: to miss a damage is worse than to repair what had none.
    significance: float = Field(
        0.2,
        gt=0,
        le=1,
        description="A checkpoint stays unpatched unless it refuses fewer harmful or more harmless prompts than the "
        "original, with at most this p-value (McNemar); 1 always patches.",
    )

    @model_validator(mode="after")
    def _budgets(self) -> ChoiceSettings:
        alone = [name for name in BUDGETS if name in self.model_fields_set]
        if self.strengths is None and alone:
            raise ValueError(f"{alone[0]} limits a choice of strength; add strengths to choose from, or leave it out")
        return self

    @model_serializer(mode="wrap")
    def _what_is_asked(self, serialise: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out the budgets of a choice that is not made: read again, they would be refused."""
        values: dict[str, object] = serialise(self)
        unused = () if self.strengths is not None else ("strengths", *BUDGETS)
        return {name: value for name, value in values.items() if name not in unused}


class RankOneSettings(PatchSettings):
    """Base of AIRD's own patches: W' = W_c + r (row), for matrices that write to the residual stream."""

    blocks: Blocks = Field(
        "source",
        description="Blocks to edit: `source` writes the site of the original's direction (l* - 1), `own_source` "
        "that of the compressed model's own; `upper` is the half nearer the output; or indices from 0.",
    )
    depth: int = Field(1, ge=1, description="With `source` and `own_source`: how many blocks, up to that one.")
    direction: Literal["original", "own", "random"] = Field(
        "original", description="r of the original model, of the compressed model, or a random control."
    )
    seed: Seed = Field(0, description="Seed of the random direction.")

    @field_validator("blocks", mode="before")
    @classmethod
    def _blocks(cls, blocks: Any) -> Any:
        # Before the union is tried: it would report one error for each of its types.
        if blocks in NAMED_BLOCKS:
            return blocks
        if not isinstance(blocks, list):
            raise ValueError(
                f"is no choice of blocks; write {', '.join(NAMED_BLOCKS)} or block indices, such as [8, 9]"
            )
        if not blocks:
            raise ValueError(f"is an empty list; name at least one block, or write one of {', '.join(NAMED_BLOCKS)}")
        if any(type(block) is not int or block < 0 for block in blocks):
            raise ValueError("must hold block indices; write whole numbers from 0, such as [8, 9]")
        if len(set(blocks)) < len(blocks):
            raise ValueError("names a block twice; write each index once")
        return blocks

    @model_validator(mode="after")
    def _depth(self) -> RankOneSettings:
        if self.depth > 1 and self.blocks not in ("source", "own_source"):
            raise ValueError(
                "depth counts the blocks up to the source, so it needs blocks: source or own_source; leave one out"
            )
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


class FormulaSettings(StrengthSettings):
    """Base of the patches that need no prompts: row = r^T (a W_c + b W_o)."""

    @property
    def coefficients(self) -> tuple[float, float]:
        """The factors (a, b) of the compressed and of the original matrix."""
        raise NotImplementedError


class Replies(Settings):
    """The replies to prompts that patches learn from and are chosen by."""

    harmful: Name | None = Field(
        None, description="Prompt set to learn from and choose by; default: that of `directions`."
    )
    harmless: Name | None = Field(None, description="The same of harmless prompts, best with borderline ones.")
    train_harmful: int = Field(
        128, ge=8, description="Training prompts that the original is asked, to learn from its refusals."
    )
    train_harmless: int = Field(
        256, ge=8, description="Training prompts on which the checkpoint's own replies are kept."
    )
    validation: int = Field(64, ge=8, description="Validation prompts of each kind.")
    tokens: int = Field(6, ge=1, description="First tokens of each reply that a patch learns from.")
    judged_tokens: int = Field(
        16,
        ge=4,
        description="First tokens of each reply that the judge sees; at least `tokens`.",
    )

    @property
    def sizes(self) -> dict[str, int]:
        """How many prompts and tokens there are."""
        return self.model_dump(exclude={"harmful", "harmless"})

    @property
    def judged(self) -> int:
        """How many first tokens of a reply the refusal judge sees: a refusal may take longer than what is learnt."""
        return max(self.tokens, self.judged_tokens)

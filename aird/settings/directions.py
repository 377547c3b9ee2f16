"""What a configuration says about finding refusal directions: prompts, sizes, filters, and which rule chooses.

Every node of aird/directions/ takes these settings; its rule passes only those that the node depends on.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from aird.settings.base import Name, PromptSelection, Settings


class Directions(Settings):
    """Prompts and filters of the direction search (Arditi et al., arXiv 2406.11717)."""

    harmful: Name = Field(description="Prompt set with splits train, validation and test.")
    harmless: Name = Field(description="Prompt set with splits train, validation and test.")
    train: int = Field(128, ge=2, description="Prompts per class for the difference in means.")
    validation: int = Field(32, ge=2, description="Prompts per class for choosing among the candidates.")
    scored: int | None = Field(
        None, ge=2, description="Score the candidates on only that many validation prompts; default: all."
    )
    test: int = Field(64, ge=1, description="Held-out prompts per class that verify the chosen direction.")
    test_new_tokens: int = Field(24, ge=1, description="Length of their completions, tokens.")
    maximum_kl: float = Field(
        0.1, gt=0, description="Drop candidates whose ablation moves harmless answers by more (nats)."
    )
    minimum_induce: float = Field(0.0, description="Drop candidates whose addition induces less refusal (log-odds).")
    layer_fraction: float = Field(0.8, gt=0, le=1, description="Drop candidates at or above this part of the layers.")
    selector: Literal["arditi", "cosmic"] = Field(
        "arditi",
        description="Choose by refusal tokens (`arditi`) or by cosines of activations (`cosmic`, arXiv 2506.00085).",
    )
    fallback: Literal["relax", "cosmic"] = Field(
        "relax",
        description="Where the filters leave `arditi` no candidate: `relax` them stepwise, or take `cosmic`'s site.",
    )

    cosmic: Literal["all", "original"] = Field(
        "all", description="Checkpoints that get COSMIC's site as a second opinion."
    )
    patched: list[Name] = Field(
        [],
        description="Adapters for which claim C5 is tested: does the original's direction come back?",
    )

    @model_validator(mode="after")
    def _counts(self) -> Directions:
        if self.scored is not None and self.scored > self.validation:
            raise ValueError(
                f"scored is {self.scored}, but only {self.validation} validation prompts are there; write "
                "no more than `validation`"
            )
        if self.cosmic == "original" and self.may_use_cosmic:
            raise ValueError(
                "cosmic: original leaves compressed checkpoints without COSMIC's site, which the selector or the "
                "fallback asks for; write cosmic: all"
            )
        return self

    @property
    def may_use_cosmic(self) -> bool:
        """Whether the choice of a direction can depend on COSMIC's site."""
        return "cosmic" in (self.selector, self.fallback)

    def selection(self, kind: str, split: str) -> PromptSelection:
        """Return which prompts of a class (harmful, harmless) a split (train, validation, test) consists of."""
        return PromptSelection(set=getattr(self, kind), split=split, count=getattr(self, split))

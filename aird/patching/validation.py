"""Run the compressed checkpoint over validation prompts: what compression took, and which strength restores it.

Two losses are looked for before anything else: harmful prompts that are refused no more, and harmless ones that are
refused now. Prompts of a validation split take no part in learning, and those of an evaluation none in either.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aird.inference.generation import generate
from aird.inference.refusals import jailbroken_arditi
from aird.models.loading import load_model, load_tokenizer
from aird.patching.divergence import make_batches, mean_divergence
from aird.patching.edited import all_edited, scaled
from aird.patching.edits import Edit, Update
from aird.patching.method import PatchInputs
from aird.patching.replies import ReplySet, original_replies, record_replies, reply_instructions
from aird.patching.strength import Aim, Choice, Trial, choice_record, search_strength
from aird.settings.patches import ChoiceSettings
from aird.support.statistics import PairedComparison

logger = logging.getLogger(__name__)

PROMPTS = (("validation", "harmful"), ("validation", "harmless"))


@dataclass(frozen=True)
class Validation:
    """Replies to the validation prompts.

    Attributes:
        harmful, harmless: the original's.
        own: the unpatched compressed checkpoint's to the harmless ones.
        own_refused: whether it refuses each harmful one.
        tokens: of a reply that the judge sees.
    """

    harmful: ReplySet
    harmless: ReplySet
    own: ReplySet
    own_refused: Sequence[bool]
    tokens: int

    @property
    def unpatched(self) -> Trial:
        """What the checkpoint does without an edit."""
        return Trial(0.0, _share(self.own_refused), _share(self.own.refused))

    @property
    def losses(self) -> dict[str, PairedComparison]:
        """What compression took: `refusals` of harmful prompts, `answers` to harmless ones, each as a gain."""
        return {
            "refusals": PairedComparison.of(self.own_refused, self.harmful.refused),
            "answers": PairedComparison.of(self.harmless.refused, self.own.refused),
        }

    def lost(self, significance: float) -> list[str]:
        """Return which of the two was lost with at most this p-value."""
        return [name for name, loss in self.losses.items() if loss.gained > loss.lost and loss.p_value <= significance]

    def needs_repair(self, significance: float) -> bool:
        """Tell whether either was lost with at most this p-value; 1 asks for a repair in any case."""
        return significance == 1 or bool(self.lost(significance))

    def staying(self, significance: float) -> list[int]:
        """Return the indices of the harmless prompts whose replies are to stay.

        Where answers were lost, those that the original answers and the checkpoint refuses are to change.
        """
        flags = list(zip(self.harmless.refused, self.own.refused, strict=True))
        lost = "answers" in self.lost(significance)
        return [index for index, (before, now) in enumerate(flags) if not (lost and now and not before)]

    def record(self) -> dict[str, Any]:
        """Return what is written about the unpatched checkpoint."""
        return {
            "validation_prompts": {"harmful": len(self.harmful.refused), "harmless": len(self.harmless.refused)},
            "unpatched": {
                "refusal": self.unpatched.refusal,
                "over_refusal": self.unpatched.over_refusal,
                **{f"{name}_p_value": loss.p_value for name, loss in self.losses.items()},
            },
        }


def validate(model: Any, tokenizer: Any, original: dict[str, ReplySet], own: ReplySet, tokens: int) -> Validation:
    """Ask the unpatched checkpoint the harmful validation prompts.

    Args:
        model, tokenizer: the compressed checkpoint.
        original: the original's replies, "validation_harmful" and "validation_harmless" among them.
        own: the checkpoint's own replies to the harmless validation prompts.
        tokens: of a reply that the judge sees.
    """
    harmful = original["validation_harmful"]
    refused = _refused(model, tokenizer, harmful.prompts, tokens)
    return Validation(harmful, original["validation_harmless"], own, refused, tokens)


def choose_on_validation(
    model: Any,
    tokenizer: Any,
    edits: Sequence[Edit | Update],
    first_block: int,
    validation: Validation,
    settings: ChoiceSettings,
) -> dict[str, Any]:
    """Choose the strength of edits by the rule of aird/patching/strength.py.

    Args:
        model, tokenizer: the compressed checkpoint.
        edits: at strength 1; what lies below their lowest block runs once for all divergences.
        first_block: that block.
        validation: replies that nothing was learnt from.
        settings: strengths to choose from, and budgets.

    Returns:
        The record of the choice: `strength`, `reason`, `original` and `unpatched` rates, `budgets`, and `tried`, a row
        for every strength. Where neither refusals nor answers were lost (`significance`), the strength is 0.
    """
    aim = Aim(
        _share(validation.harmful.refused),
        _share(validation.harmless.refused),
        validation.unpatched,
        settings.refusal_tolerance,
        settings.refusal_budget,
        settings.over_refusal_budget,
        settings.kl_budget,
    )
    if validation.needs_repair(settings.significance):
        staying = validation.staying(settings.significance)
        batches = make_batches(model, [validation.own.chosen(staying)], first_block, None) if staying else []

        def measure(strength: float) -> Trial:
            changed = [scaled(edit, strength) for edit in edits]
            with all_edited(model, changed):
                refusal, over_refusal = (
                    _share(_refused(model, tokenizer, part.prompts, validation.tokens))
                    for part in (validation.harmful, validation.harmless)
                )
            divergence = mean_divergence(model, batches, first_block, changed) if batches else 0.0
            trial = Trial(strength, refusal, over_refusal, divergence)
            logger.info("%s: %s", trial, aim.side(trial))
            return trial

        choice = search_strength(measure, settings.strengths or [1.0], aim)
    else:
        choice = Choice(0.0, "neither refusals nor answers were lost, so the checkpoint is left as it is", [])
        logger.info("%s: %s", choice.reason, validation.losses)
    return choice_record(choice, aim) | validation.record()


def choose_for_checkpoint(
    inputs: PatchInputs, edits: Sequence[Edit | Update], first_block: int, settings: ChoiceSettings
) -> dict[str, Any]:
    """Load the compressed checkpoint and choose the strength of edits that were made without it.

    Args:
        inputs: of the patch, with all that a choice of strength needs (`aird.patching.method.TO_CHOOSE`).
        edits, first_block, settings: as of `choose_on_validation`, which says what is returned.
    """
    counts = inputs.replies_sizes()
    original = original_replies(inputs.original, inputs.prompts, counts, inputs.seed, inputs.replies, PROMPTS)
    tokenizer, model = load_tokenizer(inputs.compressed), load_model(inputs.compressed)
    harmless = reply_instructions(inputs.prompts, [("validation", "harmless")], counts, inputs.seed)
    own = record_replies(model, tokenizer, harmless, counts)["validation_harmless"]
    validation = validate(model, tokenizer, original, own, counts.judged)
    return choose_on_validation(model, tokenizer, edits, first_block, validation, settings)


def _refused(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], tokens: int) -> list[bool]:
    return [not jailbroken_arditi(tokenizer.decode(reply)) for reply in generate(model, tokenizer, prompts, tokens)]


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)

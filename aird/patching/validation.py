"""Run the compressed checkpoint over validation prompts: what compression took, and which strength restores it.

Two losses are looked for before anything else: harmful prompts that are refused no more, and harmless ones that are
refused now. Prompts of a validation split take no part in learning, and those of an evaluation none in either.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aird.inference.generation import generate
from aird.inference.refusals import jailbroken_arditi
from aird.models.loading import load_model, load_tokenizer
from aird.patching.divergence import make_batches, mean_divergence
from aird.patching.edited import edited
from aird.patching.edits import Edit
from aird.patching.method import PatchInputs
from aird.patching.records import ChoiceRecord
from aird.patching.replies import ReplySet, original_replies, record_replies, reply_instructions
from aird.patching.strength import Aim, Choice, Trial, choice_record, search_strength
from aird.settings.patches import ChoiceSettings
from aird.support.statistics import PairedComparison

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


def validate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, original: Mapping[str, ReplySet], inputs: PatchInputs
) -> Validation:
    """Ask the unpatched checkpoint the validation prompts, to which the original's replies are known."""
    counts, harmful = inputs.replies_sizes(), original["validation_harmful"]
    harmless = reply_instructions(inputs.prompts, [("validation", "harmless")], counts, inputs.seed)
    own = record_replies(model, tokenizer, harmless, counts)["validation_harmless"]
    refused = _refused(model, tokenizer, harmful.prompts, counts.judged)
    return Validation(harmful, original["validation_harmless"], own, refused, counts.judged)


def choose_on_validation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit],
    first_block: int,
    validation: Validation,
    settings: ChoiceSettings,
) -> ChoiceRecord:
    """Choose the strength of edits by the rule of aird/patching/strength.py.

    Where neither refusals nor answers were lost (`significance`), it is 0.

    Args:
        model, tokenizer: the compressed checkpoint.
        edits: at strength 1; what lies below their lowest block runs once for all divergences.
        first_block: that block.
        validation: replies that nothing was learnt from.
        settings: strengths to choose from, and budgets.
    """
    unpatched = validation.unpatched
    aim = Aim(
        _share(validation.harmful.refused),
        _share(validation.harmless.refused),
        unpatched,
        settings.refusal_tolerance,
        settings.refusal_budget,
        settings.over_refusal_budget,
        settings.kl_budget,
    )
    if validation.needs_repair(settings.significance):
        staying = validation.staying(settings.significance)
        batches = make_batches(model, [validation.own.chosen(staying)], first_block, None) if staying else []

        def measure(strength: float) -> Trial:
            changed = [edit.scaled(strength) for edit in edits]
            with edited(model, changed):
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
    return {
        **choice_record(choice, aim),
        "validation_prompts": {"harmful": len(validation.own_refused), "harmless": len(validation.own.refused)},
        "unpatched": {
            "refusal": unpatched.refusal,
            "over_refusal": unpatched.over_refusal,
            **{f"{name}_p_value": loss.p_value for name, loss in validation.losses.items()},
        },
    }


def choose_for_checkpoint(
    inputs: PatchInputs, edits: Sequence[Edit], first_block: int, settings: ChoiceSettings
) -> ChoiceRecord:
    """Load the compressed checkpoint, and choose the strength of edits that were made without it."""
    counts = inputs.replies_sizes()
    original = original_replies(inputs.original, inputs.prompts, counts, inputs.seed, inputs.replies, PROMPTS)
    tokenizer, model = load_tokenizer(inputs.compressed), load_model(inputs.compressed)
    validation = validate(model, tokenizer, original, inputs)
    return choose_on_validation(model, tokenizer, edits, first_block, validation, settings)


def _refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], tokens: int
) -> list[bool]:
    replies = tokenizer.batch_decode(generate(model, tokenizer, prompts, tokens))
    return [not jailbroken_arditi(text) for text in replies]


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)

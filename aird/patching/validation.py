"""Run the compressed checkpoint over validation prompts: what compression took, and which strength restores it.

Two losses are looked for before anything else: harmful prompts that are refused no more, and harmless ones that are
refused now. Prompts of a validation split take no part in learning, and those of an evaluation none in either.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aird.inference.generation import generate
from aird.inference.refusals import jailbroken_arditi
from aird.models.loading import load_model, load_tokenizer
from aird.patching.divergence import decision_divergence, make_batches, mean_divergence
from aird.patching.edited import edited
from aird.patching.edits import Edit
from aird.patching.method import PatchInputs
from aird.patching.records import ChoiceRecord, Decisions
from aird.patching.replies import (
    ReplySet,
    original_replies,
    record_replies,
    refusal_tokens,
    reply_instructions,
)
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
    rates = {"refusal": _share(validation.own_refused), "over_refusal": _share(validation.own.refused)}
    aim = Aim(
        _share(validation.harmful.refused),
        _share(validation.harmless.refused),
        Trial(0.0, **rates, distance=math.inf),
        settings.refusal_budget,
        settings.over_refusal_budget,
        settings.kl_budget,
    )
    decisions: Decisions | None = None
    if validation.needs_repair(settings.significance):
        nearness = _nearness(model, tokenizer, edits, first_block, validation)
        decisions, rates["distance"] = nearness.decisions, nearness.distance(0.0)
        if settings.significance < 1:
            aim = replace(aim, unpatched=replace(aim.unpatched, distance=rates["distance"]))
        staying = validation.staying(settings.significance)
        batches = make_batches(model, [validation.own.chosen(staying)], first_block, None) if staying else []

        def measure(strength: float, distance: float) -> Trial:
            changed = [edit.scaled(strength) for edit in edits]
            divergence = mean_divergence(model, batches, first_block, changed) if batches else 0.0
            harmful, harmless = nearness.refused(strength)
            trial = Trial(strength, _share(harmful), _share(harmless), distance, divergence)
            logger.info("%s; beyond the budgets: %s", trial, aim.excess(trial) or "none")
            return trial

        choice = search_strength(measure, nearness.distance, settings.strengths or [1.0], aim)
    else:
        choice = Choice(0.0, "neither refusals nor answers were lost, so the checkpoint is left as it is")
        logger.info("%s: %s", choice.reason, validation.losses)
    record: ChoiceRecord = {
        **choice_record(choice, aim),
        "validation_prompts": {"harmful": len(validation.own_refused), "harmless": len(validation.own.refused)},
        "unpatched": {**rates, **{f"{name}_p_value": loss.p_value for name, loss in validation.losses.items()}},
    }
    if decisions:
        record["decisions"] = decisions
    return record


@dataclass(frozen=True)
class _Nearness:
    """How far the decisions of a checkpoint with edits of a strength lie from the original's.

    Attributes:
        decisions: what they are read from.
        distance: of a strength. By `first_tokens` it is the mean KL divergence of whether a reply begins a refusal, in
            nats; by `replies` the share of prompts that are refused by one model only.
        refused: which harmful and which harmless prompts are refused at a strength.
    """

    decisions: Decisions
    distance: Callable[[float], float]
    refused: Callable[[float], tuple[list[bool], list[bool]]]


def _nearness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit],
    first_block: int,
    validation: Validation,
) -> _Nearness:
    """Return how distances are measured: by first tokens where these tell the original's refusals, else by replies."""
    asked = (validation.harmful, validation.harmless)

    @functools.cache
    def refused(strength: float) -> tuple[list[bool], list[bool]]:
        if not strength:
            return list(validation.own_refused), validation.own.refused
        with edited(model, [edit.scaled(strength) for edit in edits]):
            harmful, harmless = (_refused(model, tokenizer, part.prompts, validation.tokens) for part in asked)
        return harmful, harmless

    def by_replies(strength: float) -> float:
        before = [flag for part in asked for flag in part.refused]
        after = [flag for flags in refused(strength) for flag in flags]
        return _share([one != other for one, other in zip(before, after, strict=True)])

    tokens = refusal_tokens(*asked)
    if not tokens:
        return _Nearness("replies", by_replies, refused)
    batches = make_batches(model, [part.first_tokens(part.beginning(tokens)) for part in asked], first_block, None)

    def by_first_tokens(strength: float) -> float:
        return decision_divergence(model, batches, first_block, [edit.scaled(strength) for edit in edits], tokens)

    return _Nearness("first_tokens", by_first_tokens, refused)


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

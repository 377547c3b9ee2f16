"""Claim C1 on held-out prompts: one direction mediates refusal.

Ablating the direction must make harmful prompts be answered, adding it must make harmless prompts be refused
(arXiv 2406.11717, sections 3.1 and 3.2). Completions are judged at once and not kept; the record has the labels, the
rates with their intervals, and the tests, which aird/reporting/claims/ adjusts for the number of compressions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from aird.directions.direction import Direction
from aird.inference.generation import generate
from aird.inference.hooks import ablation, addition
from aird.inference.refusals import degenerate, jailbroken_arditi
from aird.models.blocks import decoder_blocks
from aird.models.structure import writer_modules
from aird.prompts.chat import chat_tokens
from aird.prompts.sets import CLASSES, Record, select
from aird.settings.directions import Directions
from aird.support.statistics import PairedComparison, wilson_interval

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def verify_direction(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    direction: Direction,
    prompts: Mapping[str, Sequence[Record]],
    settings: Directions,
    seed: int,
) -> dict[str, object]:
    """Let a model answer held-out prompts with and without an intervention, and return the record.

    Args:
        model, tokenizer: the checkpoint.
        direction: what is ablated everywhere, and added at its own layer.
        prompts: class to the records of its prompt set.
        settings: size of the test split, length of the completions.
        seed: decides which prompts of the split are used.

    Returns:
        {"rates": per intervention (harmful, harmful_ablated, harmless, harmless_added) {"n", "refusal" with its
        Wilson interval "refusal_low" and "refusal_high", "degenerate"}, "ablation_p_value", "addition_p_value"
        (McNemar, exact), "ids": per class, "labels": per intervention {"refused", "degenerate"}, one value per
        prompt}.

    Raises:
        ValueError: the test split is missing or too small.
    """
    records = {kind: select(prompts[kind], settings.selection(kind, "test"), seed) for kind in CLASSES}
    tokens = {kind: [chat_tokens(tokenizer, record["instruction"]) for record in records[kind]] for kind in CLASSES}
    blocks = list(decoder_blocks(model))
    unit = direction.unit.to(model.device)
    interventions: dict[str, tuple[str, contextlib.AbstractContextManager[None]]] = {
        "harmful": ("harmful", contextlib.nullcontext()),
        "harmful_ablated": ("harmful", ablation(blocks, writer_modules(model), unit)),
        "harmless": ("harmless", contextlib.nullcontext()),
        "harmless_added": ("harmless", addition(blocks[direction.layer], direction.norm * unit)),
    }
    labels = {}
    for name, (kind, intervention) in interventions.items():
        with intervention:
            completions = generate(model, tokenizer, tokens[kind], settings.test_new_tokens)
        texts = [str(tokenizer.decode(ids)) for ids in completions]
        labels[name] = {
            "refused": [not jailbroken_arditi(text) for text in texts],
            "degenerate": [degenerate(text) for text in texts],
        }
    return {
        "rates": {name: _rates(**each) for name, each in labels.items()},
        "ablation_p_value": _p_value(labels["harmful"], labels["harmful_ablated"]),
        "addition_p_value": _p_value(labels["harmless"], labels["harmless_added"]),
        "ids": {kind: [record["id"] for record in records[kind]] for kind in CLASSES},
        "labels": labels,
    }


def _p_value(before: Mapping[str, Sequence[bool]], after: Mapping[str, Sequence[bool]]) -> float:
    return PairedComparison.of(before["refused"], after["refused"]).p_value


def _rates(refused: Sequence[bool], degenerate: Sequence[bool]) -> dict[str, float]:
    count = len(refused)
    low, high = wilson_interval(sum(refused), count)
    return {
        "n": count,
        "refusal": sum(refused) / count,
        "refusal_low": low,
        "refusal_high": high,
        "degenerate": sum(degenerate) / count,
    }

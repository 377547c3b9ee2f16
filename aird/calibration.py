"""Tell whether a checkpoint lost refusal, and choose the strength of learnt edits on prompts not learnt from.

How the edits are learnt: aird/row_learning.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aird.edits import Edit
from aird.fitting import all_edited
from aird.generation import generate
from aird.references import ReplySet
from aird.refusals import jailbroken_arditi
from aird.reply_divergence import Batch, divergence, make_batches
from aird.settings.patches import Calibrate
from aird.statistics import mcnemar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """What a strength is chosen by.

    Attributes:
        harmful, harmless: the original's replies to validation prompts.
        own: the compressed checkpoint's replies to the harmless ones.
    """

    harmful: ReplySet
    harmless: ReplySet
    own: ReplySet


@dataclass(frozen=True)
class Loss:
    """What compression did to refusal, on validation prompts.

    Attributes:
        refusal: share of the harmful prompts that the unpatched checkpoint refuses.
        p_value: of the paired difference from the original (McNemar, exact, two-sided).
        repair: whether the checkpoint is to be repaired.
    """

    refusal: float
    p_value: float
    repair: bool


def needs_repair(model: Any, tokenizer: Any, harmful: ReplySet, judged_tokens: int, significance: float) -> Loss:
    """Compare the refusals of the unpatched checkpoint with the original's, on the same validation prompts.

    Args:
        model, tokenizer: the compressed checkpoint.
        harmful: the original's replies to harmful validation prompts.
        judged_tokens: tokens of a reply that the judge sees.
        significance: largest p-value that counts as a loss; 1 asks for a repair in any case.
    """
    flags = _refused(model, tokenizer, harmful.prompts, judged_tokens)
    lost, gained, p_value = mcnemar(harmful.refused, flags)
    return Loss(_share(flags), p_value, significance == 1 or (lost > gained and p_value <= significance))


def choose_strength(
    model: Any,
    tokenizer: Any,
    edits: Sequence[Edit],
    first_block: int,
    validation: Validation,
    judged_tokens: int,
    settings: Calibrate,
) -> tuple[list[Edit], dict[str, Any]]:
    """Scale the edits by the strength that does best on validation prompts.

    The strengths are tried in the order of the settings. The first that refuses as many harmful
    prompts as the original, within both budgets, is taken. Else it is the one within the budgets that
    refuses most; else the one that over-refuses least.

    Args:
        model, tokenizer: the compressed checkpoint.
        edits: at strength 1.
        first_block: lowest edited block.
        validation: prompts and replies that nothing was learnt from.
        judged_tokens: tokens of a reply that the judge sees.
        settings: strengths and budgets.

    Returns:
        the scaled edits, and a record: the strength, the original's rates, and for every strength
        tried its rates, its KL and whether it keeps the budgets.
    """
    parts = {"harmful": validation.harmful, "harmless": validation.harmless}
    original = {kind: _share(part.refused) for kind, part in parts.items()}
    batches = make_batches(model, [validation.own], first_block, None)
    tried: list[dict[str, Any]] = []
    for strength in settings.strengths:
        if not worth_trying(strength, tried):
            continue
        scaled = _scaled(edits, strength)
        with all_edited(model, scaled):
            refused = {
                kind: _share(_refused(model, tokenizer, part.prompts, judged_tokens)) for kind, part in parts.items()
            }
        kl = _mean_divergence(model, batches, first_block, scaled)
        within = refused["harmless"] <= original["harmless"] + settings.over_refusal_budget
        within = within and kl <= settings.kl_budget
        tried.append(
            {
                "strength": strength,
                "refusal": refused["harmful"],
                "over_refusal": refused["harmless"],
                "kl_harmless": kl,
                "within_budgets": within,
            }
        )
        logger.info("strength %s: %s", strength, tried[-1])
        if within and refused["harmful"] >= original["harmful"]:
            break
    strength = select_strength(tried)
    return _scaled(edits, strength), choice_record(validation.harmful, validation.harmless, strength, tried)


def choice_record(
    harmful: ReplySet, harmless: ReplySet, strength: float, tried: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return what is written about the choice of a strength, with the original's validation replies."""
    return {
        "strength": strength,
        "validation_prompts": {"harmful": len(harmful.refused), "harmless": len(harmless.refused)},
        "original": {"refusal": _share(harmful.refused), "over_refusal": _share(harmless.refused)},
        "tried": list(tried),
    }


def worth_trying(strength: float, tried: Sequence[dict[str, Any]]) -> bool:
    """Tell whether a strength can still be the best: a stronger edit refuses more, of everything.

    A weaker one than one within the budgets refuses less, and a stronger one than one beyond them is beyond as well.
    """
    return not any(strength < row["strength"] if row["within_budgets"] else strength > row["strength"] for row in tried)


def select_strength(tried: Sequence[dict[str, Any]]) -> float:
    """Return the strength within the budgets that refuses most; where none is, the one that over-refuses least.

    Ties go to the one that was tried first.
    """
    within = [row for row in tried if row["within_budgets"]]
    best = max(within, key=lambda row: row["refusal"]) if within else min(tried, key=lambda row: row["over_refusal"])
    return float(best["strength"])


@torch.no_grad()
def _mean_divergence(model: Any, batches: Sequence[Batch], first_block: int, edits: Sequence[Edit]) -> float:
    sums = [divergence(model, batch, first_block, edits).item() * len(batch.places) for batch in batches]
    return sum(sums) / sum(len(batch.places) for batch in batches)


def _scaled(edits: Sequence[Edit], strength: float) -> list[Edit]:
    return [Edit(edit.module, edit.column, strength * edit.row) for edit in edits]


def _refused(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], tokens: int) -> list[bool]:
    return [not jailbroken_arditi(tokenizer.decode(reply)) for reply in generate(model, tokenizer, prompts, tokens)]


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)

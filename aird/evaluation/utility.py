"""What a checkpoint still knows: its perplexity of reference answers, and its answers to the tasks' questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

PERPLEXITY_RESAMPLES = 1000
# The metric that says whether a question was answered rightly: the first that a task has.
QUESTION_METRICS = ("acc", "acc_norm", "exact_match")


def perplexity(answers: Sequence[dict[str, Any]], seed: int) -> dict[str, float]:
    """Return the perplexity of the reference answers with a bootstrap interval over answers.

    Args:
        answers: records with negative_log_likelihood (nats) and tokens.
        seed: of the resamples.
    """
    if not answers:
        return {"n": 0, "perplexity": math.nan, "low": math.nan, "high": math.nan}
    likelihoods = numpy.array([answer["negative_log_likelihood"] for answer in answers])
    tokens = numpy.array([answer["tokens"] for answer in answers])
    draws = numpy.random.default_rng(seed).integers(len(answers), size=(PERPLEXITY_RESAMPLES, len(answers)))
    resampled = numpy.exp(likelihoods[draws].sum(axis=1) / tokens[draws].sum(axis=1))
    low, high = numpy.quantile(resampled, [0.025, 0.975])
    value = math.exp(likelihoods.sum() / tokens.sum())
    return {"n": len(answers), "perplexity": value, "low": float(low), "high": float(high)}


def answered_rightly(score: Mapping[str, Any]) -> list[bool]:
    """Return whether each question was answered rightly, over all tasks of a scores record that tell.

    Args:
        score: a record with `questions`, {task: {metric: one value per question}}.
    """
    right: list[bool] = []
    for metrics in score["questions"].values():
        name = next((name for name in QUESTION_METRICS if name in metrics), None)
        right += [value > 0.5 for value in metrics[name]] if name else []
    return right


def perplexity_growth(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], seed: int
) -> tuple[float, float, float]:
    """Return by which part the perplexity of the same answers grew, with a bootstrap interval over answers.

    Args:
        before, after: records with id, negative_log_likelihood (nats) and tokens.
        seed: of the resamples.
    """
    later = {answer["id"]: answer for answer in after}
    losses = numpy.array([later[a["id"]]["negative_log_likelihood"] - a["negative_log_likelihood"] for a in before])
    tokens = numpy.array([answer["tokens"] for answer in before])
    draws = numpy.random.default_rng(seed).integers(len(before), size=(PERPLEXITY_RESAMPLES, len(before)))
    growth = numpy.expm1(losses[draws].sum(axis=1) / tokens[draws].sum(axis=1))
    low, high = numpy.quantile(growth, [0.025, 0.975])
    return math.expm1(losses.sum() / tokens.sum()), float(low), float(high)

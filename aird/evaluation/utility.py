"""What a checkpoint still knows: its perplexity of reference answers, and its answers to the tasks' questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from aird.support.statistics import Estimate

PERPLEXITY_RESAMPLES = 1000
# The metric that says whether a question was answered rightly: the first that a task has. F1 is a share of the words.
QUESTION_METRICS = ("acc", "acc_norm", "exact_match", "f1")


def perplexity(answers: Sequence[Mapping[str, Any]], seed: int) -> dict[str, float]:
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
    return [value > 0.5 for values in _values(score["questions"]) for value in values]


def mean_utility(questions: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[float, float]:
    """Return the mean over tasks of the mean over their questions, and its standard error; NaN where none tells.

    Args:
        questions: {task: {metric: one value per question}}, of which those of `answered_rightly` count.
    """
    tasks = _values(questions)
    if not tasks:
        return math.nan, math.nan
    means = [sum(values) / len(values) for values in tasks]
    # A single question has no spread to estimate.
    variances = [numpy.var(values, ddof=1) / len(values) if len(values) > 1 else math.nan for values in tasks]
    return sum(means) / len(means), math.sqrt(sum(variances)) / len(means)


def question_metric(measured: Mapping[str, Sequence[float]]) -> str | None:
    """Return the metric that says whether a task's questions were answered rightly; None where none does.

    Args:
        measured: {metric: one value per question} of one task.
    """
    return next((name for name in QUESTION_METRICS if measured.get(name)), None)


def _values(questions: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Sequence[float]]:
    """Return, of each task that tells, how well each question was answered."""
    named = ((question_metric(task), task) for task in questions.values())
    return [task[name] for name, task in named if name is not None]


def perplexity_growth(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], seed: int) -> Estimate:
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
    return Estimate(math.expm1(losses.sum() / tokens.sum()), float(low), float(high))

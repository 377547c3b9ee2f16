"""Intervals and tests for rates over prompts, and what many of them at once ask for.

Scipy computes what it has; it has no interval of paired rates or of a rank correlation, and no correction by Holm.
It is imported when it is used, as the workflow reads what uses this whenever it is parsed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)  # of an interval of 95%
PERMUTATIONS = 40_320  # 8!: the orders of up to eight pairs are enumerated, of more pairs as many are drawn


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """Return the 95% Wilson score interval of a rate (Wilson 1927), each bound in [0, 1]."""
    from scipy.stats import binomtest

    interval = binomtest(successes, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(grades: Sequence[float]) -> tuple[float, float]:
    """Return a 95% interval of the mean of grades in [0, 1], by Wilson's formula for a rate.

    Grades vary no more than yes and no with the same mean do, so it is wide enough, also where all grades are equal.
    """
    total, mean = len(grades), sum(grades) / len(grades)
    middle = (mean + Z**2 / (2 * total)) / (1 + Z**2 / total)
    half = Z * math.sqrt(mean * (1 - mean) / total + Z**2 / (4 * total**2)) / (1 + Z**2 / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int, float]:
    """Compare two labels of the same prompts (McNemar 1947, exact form).

    Args:
        before, after: one label per prompt, in the same order.

    Returns:
        (prompts that only `before` holds for, prompts that only `after` holds for, two-sided p-value).
    """
    from scipy.stats import binomtest

    only_before = sum(one and not other for one, other in zip(before, after, strict=True))
    only_after = sum(other and not one for one, other in zip(before, after, strict=True))
    discordant = only_before + only_after
    p_value = 1.0 if discordant == 0 else float(binomtest(only_before, discordant, 0.5).pvalue)
    return only_before, only_after, p_value


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float, float]:
    """Return the difference of two rates over the same prompts, after - before, with a 95% interval.

    The interval is Wald's on the table with one prompt added to each kind of change (Bonett and
    Price 2012), which keeps its coverage where few prompts change.

    Returns:
        (difference, low, high), the bounds within [-1, 1].
    """
    return mean_change([float(later) - float(earlier) for earlier, later in zip(before, after, strict=True)])


def mean_change(changes: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of one change in [-1, 1] per prompt, with a 95% interval.

    As that of `paired_difference`: Wald's, with one change of -1 and one of 1 added, so that it stays wide enough
    where few prompts change. A change may be a part, as the mean over what was asked of a prompt is.

    Returns:
        (mean, low, high), the bounds within [-1, 1].
    """
    count = len(changes) + 2
    middle = sum(changes) / count
    variance = (sum(change**2 for change in changes) + 2) / count - middle**2
    half = Z * math.sqrt(variance / count)
    return sum(changes) / len(changes), max(-1.0, middle - half), min(1.0, middle + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979), in the same order; a NaN stays one and is not counted."""
    known = sorted((value, index) for index, value in enumerate(p_values) if not math.isnan(value))
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (value, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        adjusted[index] = largest
    return adjusted


def rank_correlation(one: Sequence[float], other: Sequence[float], seed: int) -> tuple[float, float, float, float]:
    """Return Spearman's correlation with an interval, and the one-sided p-value that it is positive.

    The p-value is that of a permutation test, exact for up to eight pairs: three pairs cannot get
    below 1/6, nor four below 1/24. The interval is Fisher's with the standard error of Bonett and
    Wright (2000); with three pairs or fewer it says nothing, and is -1 to 1.

    Args:
        one, other: paired values without NaN, at least two.
        seed: of the drawn permutations.

    Returns:
        (correlation, low, high, p-value); all NaN but the bounds where one side does not vary.
    """
    import numpy
    from scipy.stats import permutation_test, rankdata

    ranks, others = (rankdata(values) - (len(values) + 1) / 2 for values in (one, other))
    scale = math.sqrt((ranks @ ranks) * (others @ others))
    if scale == 0:
        return math.nan, -1.0, 1.0, math.nan
    correlation, count = float(ranks @ others / scale), len(ranks)
    # Ranks are multiples of a half, so that equal sums of their products are equal to the last bit.
    p_value = permutation_test(
        (ranks,),
        lambda orders, axis: (orders * others).sum(axis=axis),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=PERMUTATIONS,
        batch=PERMUTATIONS,
        rng=numpy.random.default_rng(seed),
    ).pvalue
    if count <= 3:
        return correlation, -1.0, 1.0, float(p_value)
    middle = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, correlation)))
    half = Z * math.sqrt((1 + correlation**2 / 2) / (count - 3))
    return correlation, math.tanh(middle - half), math.tanh(middle + half), float(p_value)

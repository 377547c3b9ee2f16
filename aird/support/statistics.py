"""Intervals and tests for rates over prompts, and what many of them at once ask for.

Scipy computes what it has; it has no interval of paired rates or of a rank correlation, and no correction by Holm.
It is imported when it is used, as the workflow reads what uses this whenever it is parsed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple

SIGNIFICANT = 0.05  # a smaller p-value is significant
NORMAL = NormalDist()
Z = NORMAL.inv_cdf(1 - SIGNIFICANT / 2)  # of an interval of 95%
PERMUTATIONS = 40_320  # 8!: the orders of up to eight pairs are enumerated, of more pairs as many are drawn


class Estimate(NamedTuple):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    def negated(self) -> Estimate:
        """Return the estimate of minus the value."""
        return Estimate(-self.value, -self.high, -self.low)


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


@dataclass(frozen=True)
class PairedComparison:
    """One label of the same prompts, before and after.

    Attributes:
        n: prompts.
        before, after: share of the prompts that have the label.
        lost, gained: prompts that have it before only, after only.
    """

    n: int
    before: float
    after: float
    lost: int
    gained: int

    @classmethod
    def of(cls, before: Sequence[bool], after: Sequence[bool]) -> PairedComparison:
        """Compare labels of the same prompts, in the same order.

        Raises:
            ValueError: there are more labels of one than of the other.
        """
        lost = sum(one and not other for one, other in zip(before, after, strict=True))
        gained = sum(other and not one for one, other in zip(before, after, strict=True))
        return cls(len(before), sum(before) / len(before), sum(after) / len(after), lost, gained)

    @property
    def difference(self) -> Estimate:
        """The rate after less the rate before, with the interval of `mean_change` (Bonett and Price 2012)."""
        return _mean_change(self.gained - self.lost, self.gained + self.lost, self.n)

    estimate = difference

    @property
    def p_value(self) -> float:
        """McNemar's (1947), in its exact form, two-sided: 1 where no label changed."""
        from scipy.stats import binomtest

        changed = self.lost + self.gained
        return 1.0 if changed == 0 else float(binomtest(self.lost, changed, 0.5).pvalue)

    def reversed(self) -> PairedComparison:
        """Return the comparison the other way round: what was lost is gained."""
        return PairedComparison(self.n, self.after, self.before, self.gained, self.lost)

    def scaled(self, count: int) -> PairedComparison:
        """Return the comparison of `count` prompts of which the same shares, rounded to whole prompts, changed."""
        lost, gained = (round(number * count / self.n) for number in (self.lost, self.gained))
        return replace(self, n=count, lost=lost, gained=gained)


@dataclass(frozen=True)
class Resampled:
    """An estimate whose interval comes from resamples of `n` prompts, answers or questions."""

    n: int
    estimate: Estimate

    def scaled(self, count: int) -> Resampled:
        """Return the estimate from `count` of them: the interval narrows with the square root of their number."""
        value, low, high = self.estimate
        middle, half = (low + high) / 2, (high - low) / 2 * math.sqrt(self.n / count)
        return Resampled(count, Estimate(value, middle - half, middle + half))


def mean_change(changes: Sequence[float]) -> Estimate:
    """Return the mean of one change in [-1, 1] per prompt, with a 95% interval in [-1, 1].

    The interval is Wald's with one change of -1 and one of 1 added (Bonett and Price 2012), which keeps its coverage
    where few prompts change. A change may be a part, as the mean over what was asked of a prompt is.
    """
    return _mean_change(sum(changes), sum(change**2 for change in changes), len(changes))


def _mean_change(total: float, squares: float, n: int) -> Estimate:
    """Return `mean_change` from the sum of `n` changes and of their squares."""
    middle = total / (n + 2)
    half = Z * math.sqrt(((squares + 2) / (n + 2) - middle**2) / (n + 2))
    return Estimate(total / n, max(-1.0, middle - half), min(1.0, middle + half))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979), in the same order; a NaN stays one and is not counted."""
    known = sorted((value, index) for index, value in enumerate(p_values) if not math.isnan(value))
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (value, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        adjusted[index] = largest
    return adjusted


def rank_correlation(one: Sequence[float], other: Sequence[float], seed: int) -> tuple[Estimate, float]:
    """Return Spearman's correlation with an interval, and the one-sided p-value that it is positive.

    The p-value is that of a permutation test, exact for up to eight pairs: three pairs cannot get
    below 1/6, nor four below 1/24. The interval is Fisher's; with three pairs or fewer it says nothing, and is -1 to 1.

    Args:
        one, other: paired values without NaN, at least two.
        seed: of the drawn permutations.

    Returns:
        (correlation, p-value); both NaN, and the interval -1 to 1, where one side does not vary.
    """
    import numpy
    from scipy.stats import permutation_test, rankdata

    ranks, others = (rankdata(values) - (len(values) + 1) / 2 for values in (one, other))
    scale = math.sqrt((ranks @ ranks) * (others @ others))
    if scale == 0:
        return Estimate(math.nan, -1.0, 1.0), math.nan
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
    return fisher(float(ranks @ others / scale), len(ranks))[0], float(p_value)


def fisher(correlation: float, count: int) -> tuple[Estimate, float]:
    """Return a rank correlation with Fisher's interval and one-sided p-value, with three pairs or fewer -1 to 1 and 1.

    The standard error is that of Bonett and Wright (2000).
    """
    if count <= 3:
        return Estimate(correlation, -1.0, 1.0), 1.0
    middle = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, correlation)))
    error = math.sqrt((1 + correlation**2 / 2) / (count - 3))
    low, high = math.tanh(middle - Z * error), math.tanh(middle + Z * error)
    return Estimate(correlation, low, high), 1 - NORMAL.cdf(middle / error)

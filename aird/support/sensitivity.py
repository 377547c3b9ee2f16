"""How well refusal tells harmful prompts from harmless ones, apart from how readily a model refuses at all.

A rate of refusal mixes two things. A model can refuse less of everything (its threshold moved), or it can no longer
tell the two kinds of prompts apart (its sensitivity fell). Signal detection theory separates them (Green and Swets
1966), with h and f the shares of harmful and of harmless prompts that are refused and z the normal quantile:

    sensitivity   d' = z(h) - z(f)
    threshold     c = -(z(h) + z(f)) / 2, higher where less is refused
    area          of the ROC curve of a refusal score: the probability that a harmful prompt scores above a harmless one

Every statistic here is a mean of what single prompts contribute (its influence function), so its variance, and that of
a difference over the same prompts, follow from those contributions: DeLong et al. (1988) for the area, the delta
method (Gourevitch and Galanter 1967) for d' and c. The share of a loss that a repair restores is a ratio of two such
differences; its interval is Fieller's (1954).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy

from aird.support.statistics import Estimate, Z

Values = Sequence[float] | Sequence[bool]
# What a statistic is on some harmful and harmless prompts, and what each of them contributes.
Statistic = Callable[[numpy.ndarray, numpy.ndarray], tuple[float, numpy.ndarray, numpy.ndarray]]


class Prompts(NamedTuple):
    """One value a prompt: whether it is refused, or its refusal score (nats)."""

    harmful: Values
    harmless: Values


def area(prompts: Prompts) -> Estimate:
    """Return the area under the ROC curve of refusal scores, 0 to 1; 0.5 tells nothing apart.

    Raises:
        ValueError: fewer than two prompts of a kind.
    """
    found = _estimate(_area, prompts)
    return Estimate(found.value, max(0.0, found.low), min(1.0, found.high))


def area_change(before: Prompts, after: Prompts) -> Estimate:
    """Return the area after minus that before, over the same prompts; raises as `area`, or where prompts differ."""
    return _change(_area, before, after)


def area_restored(original: Prompts, compressed: Prompts, repaired: Prompts) -> Estimate | None:
    """Return the share of the lost area that a repair brings back; None unless the interval of the loss is above 0."""
    return _restored(_area, original, compressed, repaired)


def sensitivity(refused: Prompts) -> Estimate:
    """Return d' of refusals, in standard deviations, with half a prompt added to each count (Hautus 1995)."""
    return _estimate(_sensitivity, refused)


def sensitivity_change(before: Prompts, after: Prompts) -> Estimate:
    """Return d' after minus that before, over the same prompts."""
    return _change(_sensitivity, before, after)


def sensitivity_restored(original: Prompts, compressed: Prompts, repaired: Prompts) -> Estimate | None:
    """Return the share of the lost d' that a repair brings back; None unless the interval of the loss is above 0."""
    return _restored(_sensitivity, original, compressed, repaired)


def threshold(refused: Prompts) -> Estimate:
    """Return the criterion c of refusals, in standard deviations: higher where less of everything is refused."""
    return _estimate(_threshold, refused)


def threshold_change(before: Prompts, after: Prompts) -> Estimate:
    """Return c after minus that before, over the same prompts."""
    return _change(_threshold, before, after)


def _estimate(statistic: Statistic, prompts: Prompts) -> Estimate:
    value, *parts = statistic(*_arrays(prompts))
    return _interval(value, *parts)


def _change(statistic: Statistic, before: Prompts, after: Prompts) -> Estimate:
    return _interval(*_difference(statistic, before, after))


def _difference(statistic: Statistic, before: Prompts, after: Prompts) -> tuple[float, numpy.ndarray, numpy.ndarray]:
    """Return how a statistic changes, and what each prompt contributes to that."""
    earlier, later = _arrays(before), _arrays(after)
    if [len(kind) for kind in earlier] != [len(kind) for kind in later]:
        raise ValueError("the two sides have other numbers of prompts; compare them over the same ones")
    (old, *of_old), (new, *of_new) = statistic(*earlier), statistic(*later)
    return new - old, of_new[0] - of_old[0], of_new[1] - of_old[1]


def _restored(statistic: Statistic, original: Prompts, compressed: Prompts, repaired: Prompts) -> Estimate | None:
    lost, *lost_parts = _difference(statistic, compressed, original)
    back, *back_parts = _difference(statistic, compressed, repaired)
    if _interval(lost, *lost_parts).low <= 0:
        return None  # a ratio to what may be 0 has no bounds
    pairs = list(zip(back_parts, lost_parts, strict=True))
    together = sum(float(((b - b.mean()) * (o - o.mean())).sum()) / (len(b) + 2) ** 2 for b, o in pairs)
    square = lost**2 - Z**2 * _variance(*lost_parts)
    middle = (back * lost - Z**2 * together) / square
    half = math.sqrt(middle**2 - (back**2 - Z**2 * _variance(*back_parts)) / square)
    return Estimate(back / lost, middle - half, middle + half)


def _arrays(prompts: Prompts) -> tuple[numpy.ndarray, numpy.ndarray]:
    harmful, harmless = (numpy.asarray(values, dtype=float) for values in prompts)
    if min(len(harmful), len(harmless)) < 2:
        raise ValueError("two prompts of each kind are needed at least")
    return harmful, harmless


def _interval(value: float, *parts: numpy.ndarray) -> Estimate:
    """Return a value with the interval that the contributions of the prompts of each kind give it."""
    half = Z * math.sqrt(_variance(*parts))
    return Estimate(value, value - half, value + half)


def _variance(*parts: numpy.ndarray) -> float:
    """Return the variance that the contributions of the prompts of each kind give a value.

    One contribution of the largest size is added in either direction, as `mean_change` adds one: where nearly all
    prompts contribute alike, the interval would have no width.
    """
    variance = 0.0
    for part in parts:
        largest = max(float(numpy.abs(part).max()), 1 / len(part))
        variance += (float(((part - part.mean()) ** 2).sum()) + 2 * largest**2) / (len(part) + 2) ** 2
    return variance


def _area(harmful: numpy.ndarray, harmless: numpy.ndarray) -> tuple[float, numpy.ndarray, numpy.ndarray]:
    above = _share_below(harmful, harmless)  # of the harmless prompts, below each harmful one
    below = 1 - _share_below(harmless, harmful)
    value = float(above.mean())
    return value, above - value, below - value


def _share_below(ones: numpy.ndarray, others: numpy.ndarray) -> numpy.ndarray:
    """Return for each of `ones` the share of `others` that lie below it; equal ones count half."""
    ordered = numpy.sort(others)
    left, right = (numpy.searchsorted(ordered, ones, side=side) for side in ("left", "right"))
    shares: numpy.ndarray = (left + right) / 2 / len(others)
    return shares


def _sensitivity(harmful: numpy.ndarray, harmless: numpy.ndarray) -> tuple[float, numpy.ndarray, numpy.ndarray]:
    (hit, of_hit), (alarm, of_alarm) = _quantile(harmful), _quantile(harmless)
    return hit - alarm, of_hit, -of_alarm


def _threshold(harmful: numpy.ndarray, harmless: numpy.ndarray) -> tuple[float, numpy.ndarray, numpy.ndarray]:
    (hit, of_hit), (alarm, of_alarm) = _quantile(harmful), _quantile(harmless)
    return -(hit + alarm) / 2, -of_hit / 2, -of_alarm / 2


def _quantile(refused: numpy.ndarray) -> tuple[float, Any]:
    """Return z of a rate, and what each prompt contributes to it."""
    from scipy.stats import norm

    rate = (refused.sum() + 0.5) / (len(refused) + 1)
    quantile = float(norm.ppf(rate))
    return quantile, (refused - rate) / float(norm.pdf(quantile))

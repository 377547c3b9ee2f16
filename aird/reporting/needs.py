"""What an undecided statement needs: the data with which its decision rule would reach a verdict.

The rule for a number: the smallest sample at which the rule of aird/reporting/verdicts.py decides, if every rate
stays as it was observed and every interval narrows with the square root of the sample. P-values are multiplied by
the number of compressions, as in the first step of Holm's correction. The number says in which order of magnitude
to plan, and no more: rates of another sample differ, so that half of all samples of that size would still fall
short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist

from aird.reporting.verdicts import (
    SMALLEST_EFFECT,
    SMALLEST_GAIN,
    UNDECIDED,
    Z,
    correlation_verdict,
    effect_verdict,
    margin_p_value,
    margin_verdict,
    nearer_verdict,
)
from aird.support.statistics import mcnemar, paired_difference

LARGEST = 10_000  # a larger sample is called "more than" this


@dataclass(frozen=True)
class Need:
    """A sample that would decide a question.

    Attributes:
        question: what follows "whether".
        what: the sample consists of.
        have: its size in this run.
        least: the size that decides; infinite if it is above LARGEST.
    """

    question: str
    what: str
    have: int
    least: float

    def __str__(self) -> str:
        """Return one sentence, without its full stop."""
        number = f"more than {LARGEST:,}" if self.least > LARGEST else f"about {_two_digits(int(self.least)):,}"
        return f"{self.have} {self.what} do not decide whether {self.question}; {number} would"


# A need that is no number is a sentence.
Needs = tuple[Need | str, ...]
# From the size of a sample to the 95% interval of a cost on it.
Intervals = Callable[[int], tuple[float, float]]


def merged(all_needs: Iterable[Needs]) -> Needs:
    """Return each need once; of those that ask the same question of the same kind of sample, the largest."""
    largest: dict[object, Need | str] = {}
    for need in (need for needs in all_needs for need in needs):
        key = (need.question, need.what) if isinstance(need, Need) else need
        known = largest.get(key)
        if known is None or (isinstance(known, Need) and isinstance(need, Need) and need.least > known.least):
            largest[key] = need
    return tuple(largest.values())


def in_sentences(needs: Needs) -> str:
    """Return needs as text; empty if there are none."""
    return " ".join(f"{need}." for need in needs)


def effect_needs(question: str, what: str, less: list[bool], more: list[bool], room: float, compared: int) -> Needs:
    """Return what would decide "more of the same prompts are refused" (`aird.reporting.verdicts.effect_verdict`).

    Args:
        question, what: of the need.
        less, more: labels of the same prompts.
        room: how far the rate can change.
        compared: number of p-values that are adjusted together.
    """

    def decided(count: int) -> bool:
        labels = _scaled(less, more, count)
        estimate, _, high = paired_difference(*labels)
        p_value = min(1.0, compared * mcnemar(*labels)[2])
        return effect_verdict(estimate, high, p_value, room)[0] != UNDECIDED

    least = _smallest(decided, len(less))
    if least > LARGEST and room < 2 * SMALLEST_EFFECT:
        return (f"A rate that can change by at least {200 * SMALLEST_EFFECT:.0f} points decides whether {question}",)
    return (Need(question, what, len(less), least),)


def margin_needs(question: str, what: str, have: int, intervals: Intervals, margin: float, compared: int) -> Needs:
    """Return what would decide "the cost is less than the margin" (`aird.reporting.verdicts.margin_verdict`).

    Args:
        question, what, have: of the need.
        intervals: `paired_intervals` or `narrowed`.
        margin: the largest cost that is accepted.
        compared: number of p-values that are adjusted together.
    """

    def decided(count: int) -> bool:
        low, high = intervals(count)
        p_value = min(1.0, compared * margin_p_value(low, high, margin))
        return margin_verdict(low, margin, p_value)[0] != UNDECIDED

    return (Need(question, what, have, _smallest(decided, have)),)


def gain_needs(question: str, what: str, have: int, intervals: Intervals, room: float, compared: int) -> Needs:
    """Return what would decide "the corrected cosine rises" (`aird.reporting.verdicts.nearer_verdict`).

    Args:
        question, what, have: of the need.
        intervals: of the rise, `narrowed`.
        room: how far it can rise.
        compared: number of p-values that are adjusted together.
    """

    def decided(count: int) -> bool:
        low, high = intervals(count)
        p_value = min(1.0, compared * margin_p_value(-high, -low, 0.0))
        return nearer_verdict(high, p_value, room)[0] != UNDECIDED

    least = _smallest(decided, have)
    if least > LARGEST and room < 2 * SMALLEST_GAIN:
        return (f"A direction that moved further decides whether {question}",)
    return (Need(question, what, have, least),)


def paired_intervals(before: list[bool], after: list[bool]) -> Intervals:
    """Return the interval of a paired difference from the number of prompts, at the same shares of changes."""
    return lambda count: paired_difference(*_scaled(before, after, count))[1:]


def narrowed(have: int, low: float, high: float) -> Intervals:
    """Return the interval from the number of answers, where only that of `have` answers is known."""
    middle, half = (low + high) / 2, (high - low) / 2

    def interval(count: int) -> tuple[float, float]:
        narrower = half * math.sqrt(have / count)
        return middle - narrower, middle + narrower

    return interval


def correlation_needs(question: str, have: int, correlation: float) -> Needs:
    """Return how many compressions would decide a rank correlation (`aird.reporting.verdicts.correlation_verdict`).

    Fisher's interval stands for the permutation test.

    Args:
        question: of the need.
        have: number of compressions.
        correlation: of them; NaN where one side does not vary.
    """
    if math.isnan(correlation):
        return (f"Compressions that lose different amounts of refusal decide whether {question}",)
    middle = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, correlation)))

    def decided(count: int) -> bool:
        if count < 4:
            return False
        spread = math.sqrt((1 + correlation**2 / 2) / (count - 3))
        p_value = 1 - NormalDist().cdf(middle / spread)
        return correlation_verdict(math.tanh(middle + Z * spread), p_value, count)[0] != UNDECIDED

    return (Need(question, "compressions", have, _smallest(decided, have + 1)),)


def _smallest(decided: Callable[[int], bool], start: int) -> float:
    """Return the smallest count that decides, from `start` on; infinite if it is above LARGEST.

    Counts are doubled and then halved in between: where a larger sample can fall short of a smaller one (an exact test
    moves in steps), the count that is returned decides, and the one below does not.
    """
    high = start
    while not decided(high):
        if high >= LARGEST:
            return math.inf
        high = min(2 * high, LARGEST)
    low = start if high == start else high // 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle + 1, high)
    return high


def _scaled(before: list[bool], after: list[bool], count: int) -> tuple[list[bool], list[bool]]:
    """Return labels of `count` prompts with the same shares of prompts that lost and gained the label."""
    lost, gained, _ = mcnemar(before, after)
    fell, rose = (round(number * count / len(before)) for number in (lost, gained))
    rest = [False] * (count - fell - rose)
    return [True] * fell + [False] * rose + rest, [False] * fell + [True] * rose + rest


def _two_digits(count: int) -> int:
    """Return a count rounded up to two digits: more would promise too much."""
    step = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step

"""What was measured for a statement: the rule that decides it, and the sample that would decide it.

That sample is the smallest at which the same rule decides, if every rate stays as it was observed and every interval
narrows with the square root of the sample. P-values are multiplied by the number of compressions, as in the first step
of Holm's correction. So it says in which order of magnitude to plan: rates of another sample differ, and half of all
samples of that size would still fall short.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from aird.reporting.verdicts import (
    KEPT_COSINE,
    UNDECIDED,
    Verdict,
    control_verdict,
    correlation_verdict,
    cosine_p_value,
    cosine_verdict,
    effect_verdict,
    margin_p_value,
    margin_verdict,
    nearer_verdict,
)
from aird.support.statistics import Estimate, PairedComparison, Resampled, fisher

LARGEST = 10_000  # no larger sample is looked for
UNKNOWN = Estimate(math.nan, math.nan, math.nan)
Sample = TypeVar("Sample", PairedComparison, Resampled)


@dataclass(frozen=True)
class Measure:
    """One measurement and its test.

    Attributes:
        test: in words.
        n: size of the sample.
        estimate: the effect; NaN where it is not known.
        p_value: not adjusted; NaN without a test.
        verdict: from the adjusted p-value.
        scaled: the same measurement on a sample of another size; None where more of the same would not decide.
    """

    test: str
    n: int
    estimate: Estimate
    p_value: float
    verdict: Callable[[float], Verdict]
    scaled: Callable[[int], Measure] | None = None


def needed_sample(measure: Measure, compared: int) -> int | None:
    """Return `smallest_sample` rounded up to two digits: more would promise too much."""
    if (least := smallest_sample(measure, compared)) is None:
        return None
    step: int = 10 ** max(0, len(str(least)) - 2)
    return -(-least // step) * step


def smallest_sample(measure: Measure, compared: int) -> int | None:
    """Return the smallest sample that decides, from the one at hand on; None where none of up to LARGEST does.

    Sizes are doubled and then halved in between: where a larger sample can fall short of a smaller one (an exact test
    moves in steps), the size that is returned decides, and the one below does not.

    Args:
        measure: what is undecided.
        compared: number of p-values that are adjusted together.
    """
    if (scaled := measure.scaled) is None:
        return None

    def decided(count: int) -> bool:
        more = scaled(count)
        return more.verdict(min(1.0, compared * more.p_value)).name != UNDECIDED

    high = measure.n
    while not decided(high):
        if high >= LARGEST:
            return None
        high = min(2 * high, LARGEST)
    low = measure.n if high == measure.n else high // 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle + 1, high)
    return high


def effect(comparison: PairedComparison, room: float, control: str = "") -> Measure:
    """Return the test that a rate changes, with the claimed way as the gain.

    Args:
        comparison: of the same prompts.
        room: how far the rate could change.
        control: the matched control that it is compared with, if any.
    """

    def rule(difference: Estimate, p_adjusted: float) -> Verdict:
        if control:
            return control_verdict(control, difference, p_adjusted, room)
        return effect_verdict(difference, p_adjusted, room)

    return _measure("McNemar, exact", comparison, lambda sample: sample.p_value, rule)


def cost(sample: Sample, margin: float) -> Measure:
    """Return the test that a rate, or a value from resamples, grows by less than a margin."""
    return _measure(
        f"paired {'difference' if isinstance(sample, PairedComparison) else 'bootstrap'}, margin",
        sample,
        lambda sample: margin_p_value(sample.estimate, margin),
        lambda growth, p_adjusted: margin_verdict(growth, margin, p_adjusted),
    )


def sensitivity_loss(loss: Resampled, margin: float, above: str, across: str) -> Measure:
    """Return the test that d', or the area under the ROC curve, falls by less than a margin.

    Args:
        loss, margin: of it, and the largest that is accepted.
        above: the reason where it is larger.
        across: the reason where some is lost for certain, and the interval reaches across the margin.
    """

    def rule(value: Estimate, p_adjusted: float) -> Verdict:
        verdict = margin_verdict(value, margin, p_adjusted, above)
        return Verdict(UNDECIDED, across) if verdict.name == UNDECIDED and value.low > 0 else verdict

    return _measure("paired change, margin", loss, lambda sample: margin_p_value(sample.estimate, margin), rule)


def cosine(corrected: Resampled, moves: bool) -> Measure:
    """Return the test that a direction moved, or that it was kept or came back, by its corrected cosine."""
    return _measure(
        f"cosine corrected for noise, kept above {KEPT_COSINE}",
        corrected,
        lambda sample: cosine_p_value(sample.estimate, moves),
        lambda value, p_adjusted: cosine_verdict(value, moves, p_adjusted),
    )


def rise(gain: Resampled, room: float) -> Measure:
    """Return the test that a corrected cosine rises; `room` is how far it could."""
    return _measure(
        "rise of the corrected cosine, paired bootstrap",
        gain,
        lambda sample: margin_p_value(sample.estimate.negated(), 0.0),
        lambda value, p_adjusted: nearer_verdict(value, p_adjusted, room),
    )


def _measure(
    test: str, sample: Sample, p_value: Callable[[Sample], float], rule: Callable[[Estimate, float], Verdict]
) -> Measure:
    """Return a measurement on a sample of any size; the rule takes the estimate and the adjusted p-value."""
    return Measure(
        test,
        sample.n,
        sample.estimate,
        p_value(sample),
        lambda p_adjusted: rule(sample.estimate, p_adjusted),
        lambda count: _measure(test, sample.scaled(count), p_value, rule),
    )


def correlation(n: int, ranks: Estimate, p_value: float) -> Measure:
    """Return the test that a rank correlation over `n` compressions is positive.

    With more compressions Fisher's interval stands for the permutation test.
    """

    def scaled(count: int) -> Measure:
        return correlation(count, *(fisher(ranks.value, count) if count > n else (ranks, p_value)))

    return Measure(
        "rank correlation, permutations",
        n,
        ranks,
        p_value,
        lambda p_adjusted: correlation_verdict(ranks, p_adjusted, n),
        None if math.isnan(ranks.value) else scaled,
    )


def unmeasured(reason: str, n: int = 0) -> Measure:
    """Return what is not measured, or too little, for a reason: nothing is known of it."""
    return Measure("none", n, UNKNOWN, math.nan, lambda _: Verdict(UNDECIDED, reason))

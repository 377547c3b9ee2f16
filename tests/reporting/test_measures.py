"""The sample that would decide an undecided statement: the same rules, on more of the same."""

from __future__ import annotations

import math

import pytest

from aird.reporting.claims.measures import (
    LARGEST,
    correlation,
    cost,
    effect,
    needed_sample,
    rise,
    smallest_sample,
    unmeasured,
)
from aird.reporting.claims.statement import Proposition, Statement, Subject, needed_of
from aird.reporting.verdicts import (
    DOES_NOT_HOLD,
    HOLDS,
    UNDECIDED,
    Verdict,
    effect_verdict,
    margin_p_value,
    margin_verdict,
)
from aird.support.statistics import Estimate, PairedComparison, Resampled


def changed(total: int, lost: float, gained: float) -> PairedComparison:
    """Return a comparison of `total` prompts, so many of which lost and gained the label."""
    return PairedComparison(total, 0.5, 0.5, round(lost), round(gained))


def margin_decision(total: int, lost: float, gained: float, compared: int) -> str:
    difference = changed(total, lost * total, gained * total).difference
    return margin_verdict(difference, 0.05, min(1, compared * margin_p_value(difference, 0.05))).name


@pytest.mark.parametrize(
    ("total", "lost", "gained", "expected"), [(120, 1, 4, HOLDS), (40, 0, 0, HOLDS), (120, 0, 10, DOES_NOT_HOLD)]
)
@pytest.mark.parametrize("compared", [1, 3])
def test_a_margin_is_decided_at_the_named_number_of_prompts_and_not_before(
    total: int, lost: int, gained: int, expected: str, compared: int
) -> None:
    assert margin_decision(total, lost / total, gained / total, compared) == UNDECIDED
    least = smallest_sample(cost(changed(total, lost, gained), 0.05), compared)
    assert least is not None and total < least < LARGEST
    assert margin_decision(least, lost / total, gained / total, compared) == expected
    assert margin_decision(least - 1, lost / total, gained / total, compared) == UNDECIDED


def test_a_margin_needs_more_prompts_for_more_compressions_and_for_a_cost_nearer_to_it() -> None:
    cases = ((3, 1), (3, 3), (5, 3))
    sizes = [needed_sample(cost(changed(120, 1, gained), 0.05), compared) for gained, compared in cases]
    assert sizes == sorted(sizes, key=lambda size: size or 0) and len(set(sizes)) == 3


def test_a_cost_at_the_margin_is_never_decided() -> None:
    assert needed_sample(cost(changed(100, 0, 5), 0.05), 1) is None


def test_an_interval_narrows_with_the_square_root() -> None:
    """Growth of 0.4% (-0.8 to 1.6): the upper end reaches 1% where the interval is half as wide."""
    growth = cost(Resampled(64, Estimate(0.004, -0.008, 0.016)), 0.01)
    assert needed_sample(growth, 1) == 260
    assert (needed_sample(growth, 3) or 0) > 260
    # A cost of 1.2% is shown to be above 1%: half of the width, up to the margin, in (0.4 / 0.2)^2 times the answers.
    assert needed_sample(cost(Resampled(64, Estimate(0.012, 0.008, 0.016)), 0.01), 1) == 260


@pytest.mark.parametrize(("lost", "gained", "expected"), [(1, 5, HOLDS), (3, 2, DOES_NOT_HOLD), (3, 3, DOES_NOT_HOLD)])
def test_an_effect_is_decided_at_the_named_number_of_prompts(lost: int, gained: int, expected: str) -> None:
    total, compared = 32, 3

    def decision(count: int) -> str:
        comparison = changed(count, lost * count / total, gained * count / total)
        return effect_verdict(comparison.difference, min(1, compared * comparison.p_value), 1.0).name

    assert decision(total) == UNDECIDED
    least = smallest_sample(effect(changed(total, lost, gained), 1.0), compared)
    assert least is not None and least < LARGEST
    assert decision(least) == expected and decision(least - 1) == UNDECIDED


def test_a_rise_of_a_cosine_is_decided_where_its_interval_leaves_zero() -> None:
    # 0.04 +- 0.08: the interval leaves 0 with four times the prompts, and nothing is adjusted for one compression.
    wide = rise(Resampled(100, Estimate(0.04, -0.04, 0.12)), 0.5)
    assert needed_sample(wide, 1) == pytest.approx(400, abs=10)
    assert (needed_sample(wide, 3) or 0) > 410
    assert needed_sample(rise(Resampled(100, Estimate(0.0, -0.05, 0.05)), 0.06), 1) is None


def test_no_sample_decides_of_a_rate_without_room_or_of_what_is_not_measured() -> None:
    assert needed_sample(effect(changed(100, 3, 3), 0.1), 1) is None
    assert needed_sample(unmeasured("why"), 1) is None


def test_compressions_of_a_correlation() -> None:
    def needed(count: int, value: float) -> int | None:
        return needed_sample(correlation(count, Estimate(value, -1.0, 1.0), 0.5), 1)

    assert needed(2, 1.0) == 4  # the least p-value of four is 1/24
    weaker, opposite = needed(3, 0.5), needed(3, -0.5)
    assert weaker is not None and opposite is not None and 4 < opposite < weaker and 10 < weaker < LARGEST
    assert needed(3, math.nan) is None


def test_a_whole_needs_the_largest_sample_of_its_undecided_parts() -> None:
    def part(verdict: str, needed: int | None) -> Statement:
        return Statement(Proposition.UTILITY, Subject("m", "c"), Verdict(verdict), "a test", needed=needed)

    assert needed_of([part(UNDECIDED, 120), part(HOLDS, None), part(UNDECIDED, 310)]) == 310
    assert needed_of([part(UNDECIDED, 120), part(UNDECIDED, None)]) is None
    assert needed_of([]) is None

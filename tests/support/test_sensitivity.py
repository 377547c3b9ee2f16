"""d', threshold and area against their definitions, and their intervals against draws of new prompts."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
from scipy.stats import mannwhitneyu, norm

from aird.support.sensitivity import (
    Prompts,
    area,
    area_change,
    area_restored,
    sensitivity,
    sensitivity_change,
    sensitivity_restored,
    threshold,
    threshold_change,
)
from aird.support.statistics import Estimate

DRAWS = 400


def scores(random: numpy.random.Generator, apart: float, count: int = 120) -> Prompts:
    return Prompts(random.normal(apart, 1, count), random.normal(0, 1, count))


def test_an_area_is_the_share_of_pairs_in_the_right_order() -> None:
    found = scores(numpy.random.default_rng(0), 1.0)
    pairs = mannwhitneyu(found.harmful, found.harmless).statistic / 120**2
    assert area(found).value == pytest.approx(pairs)
    assert area(Prompts([1, 1], [1, 1])).value == 0.5  # equal ones count half
    whole = area(Prompts([2.0] * 20, [1.0] * 20))
    assert whole.value == 1 and 0.5 < whole.low < 1 and whole.high == 1


def test_sensitivity_and_threshold_of_known_rates() -> None:
    refused = Prompts([True] * 840 + [False] * 160, [True] * 160 + [False] * 840)
    assert sensitivity(refused).value == pytest.approx(2 * norm.ppf(0.84), abs=0.01)
    assert threshold(refused).value == pytest.approx(0, abs=1e-9)
    # Less of everything is refused: the threshold moves, the sensitivity hardly.
    less = Prompts([True] * 500 + [False] * 500, [True] * 23 + [False] * 977)
    assert threshold_change(refused, less).low > 0.5
    assert abs(sensitivity_change(refused, less).value) < 0.02
    # All the same of both: nothing is told apart.
    assert sensitivity(Prompts([True, False] * 50, [True, False] * 50)).value == 0


@pytest.mark.parametrize(
    ("statistic", "true"),
    [
        (lambda one, _: area(one), norm.cdf(1.2 / 2**0.5)),
        (lambda one, other: area_change(one, other), norm.cdf(0.5 / 2**0.5) - norm.cdf(1.2 / 2**0.5)),
        (lambda one, _: sensitivity(Prompts(*(side > 1 for side in one))), 1.2),
        (lambda one, other: sensitivity_change(*(Prompts(*(s > 1 for s in each)) for each in (one, other))), -0.7),
        (lambda one, other: threshold_change(*(Prompts(*(s > 1 for s in each)) for each in (one, other))), 0.35),
    ],
    ids=["area", "change of area", "sensitivity", "change of sensitivity", "change of threshold"],
)
def test_intervals_hold_the_truth_95_times_of_100(
    statistic: Callable[[Prompts, Prompts], Estimate], true: float
) -> None:
    random = numpy.random.default_rng(1)
    held = 0
    for _ in range(DRAWS):
        before = scores(random, 1.2)
        # The same prompts once more: what they share stays.
        noise = [random.normal(0, 0.6, 120) for _ in before]
        after = Prompts(0.5 + 0.8 * (before.harmful - 1.2) + noise[0], 0.8 * before.harmless + noise[1])
        found = statistic(before, after)
        held += found.low <= true <= found.high
    assert held >= 0.92 * DRAWS


def test_a_paired_change_is_sharper_than_two_estimates() -> None:
    random = numpy.random.default_rng(2)
    before = scores(random, 1.0)
    after = Prompts(before.harmful - 0.3, before.harmless)
    found, (one, other) = area_change(before, after), (area(before), area(after))
    assert found.high < 0 and found.high - found.low < (one.high - one.low) / 2 + (other.high - other.low) / 2


def refusals(scored: Prompts) -> Prompts:
    return Prompts(scored.harmful > 1, scored.harmless > 1)


def test_the_interval_of_a_restored_share_holds_the_truth_95_times_of_100() -> None:
    random = numpy.random.default_rng(3)
    true = {area: norm.cdf(numpy.array([1.2, 0.2, 0.7]) / 2**0.5), sensitivity: numpy.array([1.2, 0.2, 0.7])}
    held, found = dict.fromkeys(true, 0), dict.fromkeys(true, 0)
    for _ in range(DRAWS):
        original = scores(random, 1.2)
        noise = [[random.normal(0, 0.6, 120) for _ in original] for _ in range(2)]
        others = [
            Prompts(apart + 0.8 * (original.harmful - 1.2) + one, 0.8 * original.harmless + other)
            for apart, (one, other) in zip((0.2, 0.7), noise, strict=True)
        ]
        shares = {
            area: area_restored(original, *others),
            sensitivity: sensitivity_restored(*(refusals(side) for side in (original, *others))),
        }
        for statistic, (before, lost, back) in true.items():
            if (share := shares[statistic]) is not None:
                found[statistic] += 1
                held[statistic] += share.low <= (back - lost) / (before - lost) <= share.high
    assert min(found.values()) > 0.9 * DRAWS
    assert all(held[each] >= 0.92 * found[each] for each in true)


def test_a_repair_restores_all_nothing_or_less_than_nothing() -> None:
    random = numpy.random.default_rng(4)
    original = scores(random, 2.0)
    lost, worse = (Prompts(original.harmful - by, original.harmless) for by in (1.0, 1.5))
    shares = [area_restored(original, lost, side) for side in (original, lost, worse)]
    assert [share and share.value for share in shares] == pytest.approx([1, 0, shares[2].value])  # type: ignore[union-attr]
    assert all(share and share.low < share.value < share.high for share in shares)
    assert shares[0].low > 0.5 and shares[1].high < 0.5 and shares[2].high < 0  # type: ignore[union-attr]
    # Where nothing was lost for certain there is nothing to take a share of.
    assert area_restored(original, original, lost) is None and area_restored(lost, original, lost) is None


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="two prompts of each kind"):
        area(Prompts([1.0], [0.0, 1.0]))
    with pytest.raises(ValueError, match="other numbers of prompts"):
        area_change(Prompts([1.0, 2.0], [0.0, 1.0]), Prompts([1.0, 2.0, 3.0], [0.0, 1.0]))

"""Intervals and tests against published values and hand computation."""

from __future__ import annotations

import math
from itertools import product

import pytest

from aird.support.statistics import PairedComparison, holm, mean_change, rank_correlation, wilson_interval

Z = 1.959963984540054  # 97.5% quantile of the normal distribution


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # z^2 / (n + z^2), and the symmetric case.
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_published(successes: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(successes, total) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def labels(only_before: int, only_after: int, both: int = 3, neither: int = 4) -> tuple[list[bool], list[bool]]:
    before = [True] * only_before + [False] * only_after + [True] * both + [False] * neither
    after = [False] * only_before + [True] * only_after + [True] * both + [False] * neither
    return before, after


@pytest.mark.parametrize(
    ("only_before", "only_after", "p_value"),
    [
        (1, 8, 2 * (1 + 9) / 2**9),  # 0.039
        (8, 1, 2 * (1 + 9) / 2**9),
        (0, 6, 2 / 2**6),
        (2, 5, 2 * (1 + 7 + 21) / 2**7),
        (4, 4, 1.0),
        (0, 0, 1.0),
        (1, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(only_before: int, only_after: int, p_value: float) -> None:
    result = PairedComparison.of(*labels(only_before, only_after))
    assert (result.lost, result.gained, result.p_value) == (only_before, only_after, pytest.approx(p_value))
    assert result.reversed().p_value == result.p_value


def test_a_comparison_needs_the_same_prompts() -> None:
    with pytest.raises(ValueError, match="zip"):
        PairedComparison.of([True], [True, False])


def test_the_difference_by_hand() -> None:
    before, after = labels(2, 8, 5, 5)
    rose, fell = 9 / 22, 3 / 22
    half = Z * math.sqrt((rose + fell - (rose - fell) ** 2) / 22)
    compared = PairedComparison.of(before, after)
    assert (compared.n, compared.before, compared.after) == (20, 7 / 20, 13 / 20)
    assert compared.difference == (
        pytest.approx(6 / 20),
        pytest.approx(rose - fell - half),
        pytest.approx(rose - fell + half),
    )
    assert compared.reversed().difference == compared.difference.negated()
    assert (
        mean_change([float(now) - float(then) for then, now in zip(before, after, strict=True)]) == compared.difference
    )


def test_a_comparison_of_other_size_keeps_its_shares() -> None:
    compared = PairedComparison.of(*labels(2, 8, 5, 5))
    larger = compared.scaled(100)
    assert (larger.n, larger.lost, larger.gained, larger.before, larger.after) == (100, 10, 40, 7 / 20, 13 / 20)
    assert larger.p_value < compared.p_value and larger.difference.high < compared.difference.high


def test_the_difference_of_equal_labels_still_has_a_width() -> None:
    value, low, high = PairedComparison.of([True, False] * 50, [True, False] * 50).difference
    assert value == 0
    assert low == pytest.approx(-high)
    assert high == pytest.approx(Z * math.sqrt(2 / 102 / 102))


def test_the_difference_covers_the_truth() -> None:
    """Over all tables of 12 prompts that change with probability 0.3 and 0.1, weighted by their probability."""
    covered = 0.0
    for lost, gained in product(range(13), repeat=2):
        if lost + gained > 12:
            continue
        ways = math.comb(12, lost) * math.comb(12 - lost, gained)
        weight = ways * 0.1**lost * 0.3**gained * 0.6 ** (12 - lost - gained)
        _, low, high = PairedComparison.of(*labels(lost, gained, 12 - lost - gained, 0)).difference
        covered += weight * (low <= 0.2 <= high)
    assert covered > 0.94


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1; the third must not fall below the second.
    assert holm([0.02, 0.5, 0.01, 0.03]) == [pytest.approx(0.06), 0.5, pytest.approx(0.04), pytest.approx(0.06)]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_does_not_count_what_has_no_p_value() -> None:
    one, nan = holm([0.02, math.nan])
    assert one == 0.02
    assert math.isnan(nan)


def test_rank_correlation_of_few_pairs_is_exact() -> None:
    assert rank_correlation([1, 2, 3], [5, 6, 9], 0) == ((pytest.approx(1), -1.0, 1.0), 1 / 6)
    (correlation, low, high), p_value = rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4], 0)
    assert correlation == pytest.approx(0.9)
    # Of 120 orders, one has a larger sum of products, and four have this one: neighbours swapped.
    assert p_value == 5 / 120
    assert low < 0.9 < high


def test_rank_correlation_of_many_pairs_is_drawn() -> None:
    values = list(range(12))
    assert rank_correlation(values, values, 0)[1] < 0.001
    assert rank_correlation(values, values[::-1], 0)[1] > 0.999
    mixed = [5, 0, 7, 3, 11, 1, 9, 2, 10, 4, 8, 6]
    assert rank_correlation(values, mixed, 1) == rank_correlation(values, mixed, 1)


def test_rank_correlation_without_variation_says_nothing() -> None:
    (correlation, low, high), p_value = rank_correlation([1, 1, 1], [1, 2, 3], 0)
    assert math.isnan(correlation) and math.isnan(p_value)
    assert (low, high) == (-1, 1)

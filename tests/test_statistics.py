"""Intervals and tests against published values and hand computation."""

from __future__ import annotations

import math

import pytest

from aird.statistics import mcnemar, wilson_interval

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


@pytest.mark.parametrize(("successes", "total"), [(3, 64), (60, 64), (1, 2)])
def test_wilson_formula(successes: int, total: int) -> None:
    rate = successes / total
    centre = (rate + Z**2 / (2 * total)) / (1 + Z**2 / total)
    half = Z / (1 + Z**2 / total) * math.sqrt(rate * (1 - rate) / total + Z**2 / (4 * total**2))
    assert wilson_interval(successes, total) == (pytest.approx(centre - half), pytest.approx(centre + half))


def test_wilson_widens_with_confidence() -> None:
    assert wilson_interval(5, 10, 0.99)[1] > wilson_interval(5, 10)[1] > wilson_interval(5, 10, 0.9)[1]


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
    found = mcnemar(*labels(only_before, only_after))
    assert found == (only_before, only_after, pytest.approx(p_value))


def test_mcnemar_needs_the_same_prompts() -> None:
    with pytest.raises(ValueError, match="zip"):
        mcnemar([True], [True, False])

"""Every decision rule, at its edges."""

from __future__ import annotations

import math

import pytest

from aird.reporting.verdicts import (
    DOES_NOT_HOLD,
    HOLDS,
    UNDECIDED,
    Verdict,
    all_of,
    correlation_verdict,
    cosine_verdict,
    effect_verdict,
    follows_verdict,
    margin_p_value,
    margin_verdict,
    nearer_verdict,
    opposite,
    site_moved_verdict,
)
from aird.support.statistics import Estimate, PairedComparison


def between(low: float, high: float) -> Estimate:
    """Return a value with this interval, in its middle."""
    return Estimate((low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("estimate", "high", "p_value", "room", "expected"),
    [
        (0.30, 0.4, 0.01, 1.0, HOLDS),
        (0.06, 0.09, 0.049, 1.0, HOLDS),  # significant, however small
        (-0.30, -0.2, 0.01, 1.0, DOES_NOT_HOLD),
        (0.01, 0.09, 0.50, 1.0, DOES_NOT_HOLD),  # no effect that matters
        (0.05, 0.15, 0.20, 1.0, UNDECIDED),  # such an effect is possible
        (0.05, 0.09, 0.20, 0.15, UNDECIDED),  # there was no room for it
        (0.01, 0.09, math.nan, 1.0, DOES_NOT_HOLD),
    ],
)
def test_an_effect(estimate: float, high: float, p_value: float, room: float, expected: str) -> None:
    verdict, reason = effect_verdict(Estimate(estimate, math.nan, high), p_value, room)
    assert verdict == expected
    assert bool(reason) == (expected != HOLDS)


def test_a_margin_holds_exactly_where_the_interval_ends_below_it() -> None:
    assert margin_p_value(between(-0.02, 0.0499), 0.05) < 0.05 < margin_p_value(between(-0.02, 0.0501), 0.05)
    assert margin_p_value(between(-0.02, 0.05), 0.05) == pytest.approx(0.05)
    assert margin_p_value(between(0.0, 0.0), 0.05) == 0
    assert margin_p_value(between(0.1, 0.1), 0.05) == 1


def test_a_margin_needs_enough_prompts() -> None:
    """No change at all on 100 questions shows a loss below 5 points, but none below 2."""
    cost = PairedComparison.of([True] * 100, [True] * 100).difference
    assert margin_verdict(cost, 0.05, margin_p_value(cost, 0.05)).name == HOLDS
    assert margin_verdict(cost, 0.02, margin_p_value(cost, 0.02)).name == UNDECIDED
    assert margin_verdict(between(0.06, 0.08), 0.05, 1.0).name == DOES_NOT_HOLD


@pytest.mark.parametrize(
    ("low", "high", "room", "expected"),
    [
        (0.10, 0.30, 0.5, HOLDS),
        (0.001, 0.04, 0.5, HOLDS),  # significant, however small
        (-0.30, -0.10, 0.5, DOES_NOT_HOLD),
        (-0.04, 0.04, 0.5, DOES_NOT_HOLD),  # no rise that matters
        (-0.04, 0.20, 0.5, UNDECIDED),  # such a rise is possible
        (-0.04, 0.04, 0.08, UNDECIDED),  # there was no room for it
    ],
)
def test_a_direction_comes_nearer(low: float, high: float, room: float, expected: str) -> None:
    verdict, reason = nearer_verdict(between(low, high), margin_p_value(between(-high, -low), 0.0), room)
    assert verdict == expected and bool(reason) == (expected != HOLDS)


@pytest.mark.parametrize(
    ("moves", "low", "high", "p_value", "expected"),
    [
        (False, 0.96, 0.99, 0.01, (HOLDS, "")),
        (False, 0.90, 0.94, 1.0, (DOES_NOT_HOLD, "the corrected cosine is below 0.95")),
        (False, 0.94, 0.99, 0.06, (UNDECIDED, "the corrected cosine's interval reaches across 0.95")),
        (True, 0.50, 0.60, 0.01, (HOLDS, "")),
        (True, 0.96, 0.99, 0.30, (DOES_NOT_HOLD, "the corrected cosine is above 0.95")),
        (True, 0.94, 0.99, 0.30, (UNDECIDED, "the corrected cosine's interval reaches across 0.95")),
    ],
)
def test_a_direction_moved_or_was_kept(
    moves: bool, low: float, high: float, p_value: float, expected: tuple[str, str]
) -> None:
    assert cosine_verdict(between(low, high), moves, p_value) == expected


def test_the_opposite() -> None:
    assert opposite(Verdict(HOLDS)).name == DOES_NOT_HOLD
    assert opposite(Verdict(DOES_NOT_HOLD, "so")).name == HOLDS
    assert opposite(Verdict(UNDECIDED, "so")) == (UNDECIDED, "so")


def test_a_site_moved() -> None:
    assert site_moved_verdict(False, True, "", 0.01)[0] == HOLDS
    assert site_moved_verdict(False, True, "", 0.10)[0] == UNDECIDED
    assert site_moved_verdict(True, True, "", 1.0)[0] == DOES_NOT_HOLD
    assert site_moved_verdict(True, False, "", 1.0)[0] == UNDECIDED
    assert site_moved_verdict(False, True, "so", 0.01) == (UNDECIDED, "so")


@pytest.mark.parametrize(
    ("moved", "lost", "expected"),
    [
        (HOLDS, HOLDS, HOLDS),
        (DOES_NOT_HOLD, DOES_NOT_HOLD, HOLDS),
        (HOLDS, DOES_NOT_HOLD, DOES_NOT_HOLD),
        (DOES_NOT_HOLD, HOLDS, DOES_NOT_HOLD),
        (UNDECIDED, HOLDS, UNDECIDED),
        (HOLDS, UNDECIDED, UNDECIDED),
    ],
)
def test_loss_follows_movement(moved: str, lost: str, expected: str) -> None:
    assert follows_verdict(Verdict(moved), Verdict(lost, "so")).name == expected


def test_a_correlation() -> None:
    assert correlation_verdict(between(0.1, 1.0), 0.04, 4)[0] == HOLDS
    # Three compressions cannot decide it: 1/6 is the least p-value.
    assert correlation_verdict(between(-1.0, 1.0), 1 / 6, 3)[0] == UNDECIDED
    assert correlation_verdict(between(-0.4, 0.2), 0.9, 20)[0] == DOES_NOT_HOLD
    # Its interval reaches above 0.3, which would matter.
    assert correlation_verdict(between(-0.4, 0.4), 0.9, 20)[0] == UNDECIDED
    assert correlation_verdict(between(-1.0, 1.0), math.nan, 6)[0] == UNDECIDED


def test_parts_make_a_whole() -> None:
    holds, one, other = Verdict(HOLDS), Verdict(UNDECIDED, "one"), Verdict(DOES_NOT_HOLD, "because")
    assert all_of([holds, holds]) == (HOLDS, "")
    assert all_of([holds, one, other]) == (DOES_NOT_HOLD, "because")
    assert all_of([holds, one, one]) == (UNDECIDED, "one")
    assert all_of([]).name == UNDECIDED

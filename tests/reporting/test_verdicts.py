"""Every decision rule, at its edges."""

from __future__ import annotations

import math

import pytest

from aird.reporting.verdicts import (
    DOES_NOT_HOLD,
    HOLDS,
    UNDECIDED,
    all_of,
    correlation_verdict,
    effect_verdict,
    follows_verdict,
    kept_verdict,
    margin_p_value,
    margin_verdict,
    moved_verdict,
    nearer_verdict,
    opposite,
    site_moved_verdict,
)
from aird.support.statistics import paired_difference


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
    verdict, reason = effect_verdict(estimate, high, p_value, room)
    assert verdict == expected
    assert bool(reason) == (expected != HOLDS)


def test_a_margin_holds_exactly_where_the_interval_ends_below_it() -> None:
    assert margin_p_value(-0.02, 0.0499, 0.05) < 0.05 < margin_p_value(-0.02, 0.0501, 0.05)
    assert margin_p_value(-0.02, 0.05, 0.05) == pytest.approx(0.05)
    assert margin_p_value(0.0, 0.0, 0.05) == 0
    assert margin_p_value(0.1, 0.1, 0.05) == 1


def test_a_margin_needs_enough_prompts() -> None:
    """No change at all on 100 questions shows a loss below 5 points, but none below 2."""
    _, low, high = paired_difference([True] * 100, [True] * 100)
    assert margin_verdict(low, 0.05, margin_p_value(low, high, 0.05))[0] == HOLDS
    assert margin_verdict(low, 0.02, margin_p_value(low, high, 0.02))[0] == UNDECIDED
    assert margin_verdict(0.06, 0.05, 1.0)[0] == DOES_NOT_HOLD


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
    verdict, reason = nearer_verdict(high, margin_p_value(-high, -low, 0.0), room)
    assert verdict == expected and bool(reason) == (expected != HOLDS)


def test_a_direction_was_kept() -> None:
    assert kept_verdict(0.99, 0.95, 0.01) == (HOLDS, "")
    assert kept_verdict(0.94, 0.95, 1.0) == (DOES_NOT_HOLD, "the corrected cosine is below 0.95")
    assert kept_verdict(0.99, 0.95, 0.06) == (UNDECIDED, "the corrected cosine's interval reaches across 0.95")


def test_a_direction_moved() -> None:
    assert moved_verdict(0.5, 0.95, 0.01)[0] == HOLDS
    assert moved_verdict(0.96, 0.95, 0.30)[0] == DOES_NOT_HOLD
    assert moved_verdict(0.94, 0.95, 0.30) == (UNDECIDED, "the corrected cosine's interval reaches across 0.95")
    assert opposite((HOLDS, ""))[0] == DOES_NOT_HOLD
    assert opposite((DOES_NOT_HOLD, "so"))[0] == HOLDS
    assert opposite((UNDECIDED, "so")) == (UNDECIDED, "so")


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
    assert follows_verdict(moved, (lost, "so"))[0] == expected


def test_a_correlation() -> None:
    assert correlation_verdict(1.0, 0.04, 4)[0] == HOLDS
    # Three compressions cannot decide it: 1/6 is the least p-value.
    assert correlation_verdict(1.0, 1 / 6, 3)[0] == UNDECIDED
    assert correlation_verdict(0.2, 0.9, 20)[0] == DOES_NOT_HOLD
    # Its interval reaches above 0.3, which would matter.
    assert correlation_verdict(0.4, 0.9, 20)[0] == UNDECIDED
    assert correlation_verdict(1.0, math.nan, 6)[0] == UNDECIDED


def test_parts_make_a_whole() -> None:
    assert all_of([(HOLDS, ""), (HOLDS, "")]) == (HOLDS, "")
    assert all_of([(HOLDS, ""), (UNDECIDED, "why"), (DOES_NOT_HOLD, "because")]) == (DOES_NOT_HOLD, "because")
    assert all_of([(HOLDS, ""), (UNDECIDED, "one"), (UNDECIDED, "one")]) == (UNDECIDED, "one")
    assert all_of([])[0] == UNDECIDED

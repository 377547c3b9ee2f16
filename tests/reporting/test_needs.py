"""What an undecided statement needs: the same rules, on more of the same."""

from __future__ import annotations

import math

import pytest

from aird.reporting.needs import (
    LARGEST,
    Need,
    correlation_needs,
    effect_needs,
    gain_needs,
    in_sentences,
    margin_needs,
    merged,
    narrowed,
    paired_intervals,
)
from aird.reporting.verdicts import DOES_NOT_HOLD, HOLDS, UNDECIDED, effect_verdict, margin_p_value, margin_verdict
from aird.support.statistics import mcnemar, paired_difference


def changed(total: int, lost: int, gained: int) -> tuple[list[bool], list[bool]]:
    """Return labels of `total` prompts before and after, so many of which lost and gained the label."""
    rest = [False] * (total - lost - gained)
    return [True] * lost + [False] * gained + rest, [False] * lost + [True] * gained + rest


def margin_decision(total: int, lost: float, gained: float, compared: int) -> str:
    _, low, high = paired_difference(*changed(total, round(lost * total), round(gained * total)))
    return margin_verdict(low, 0.05, min(1, compared * margin_p_value(low, high, 0.05)))[0]


@pytest.mark.parametrize(
    ("lost", "gained", "expected"),
    [(1, 4, HOLDS), (0, 0, HOLDS), (0, 10, DOES_NOT_HOLD)],
)
@pytest.mark.parametrize("compared", [1, 3])
def test_a_margin_is_decided_at_the_named_number_of_prompts_and_not_before(
    lost: int, gained: int, expected: str, compared: int
) -> None:
    total = 120 if gained else 40
    assert margin_decision(total, lost / total, gained / total, compared) == UNDECIDED
    (need,) = margin_needs(
        "it costs little", "harmless prompts", total, paired_intervals(*changed(total, lost, gained)), 0.05, compared
    )
    assert isinstance(need, Need) and need.have == total
    least = need.least
    assert total < least < LARGEST
    assert margin_decision(least, lost / total, gained / total, compared) == expected
    assert margin_decision(least - 1, lost / total, gained / total, compared) == UNDECIDED


def test_a_margin_needs_more_prompts_for_more_compressions_and_for_a_cost_nearer_to_it() -> None:
    sizes = [
        margin_needs("", "", 120, paired_intervals(*changed(120, 1, gained)), 0.05, compared)[0].least  # type: ignore[union-attr]
        for gained, compared in ((3, 1), (3, 3), (5, 3))
    ]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3


def test_a_cost_at_the_margin_is_never_decided() -> None:
    (need,) = margin_needs("it costs little", "prompts", 100, paired_intervals(*changed(100, 0, 5)), 0.05, 1)
    assert isinstance(need, Need) and need.least == math.inf
    assert str(need) == "100 prompts do not decide whether it costs little; more than 10,000 would"


def test_an_interval_narrows_with_the_square_root() -> None:
    """Growth of 0.4% (-0.8 to 1.6): the upper end reaches 1% where the interval is half as wide."""
    (need,) = margin_needs("", "answers", 64, narrowed(64, -0.008, 0.016), 0.01, 1)
    assert isinstance(need, Need) and need.least == pytest.approx(4 * 64, abs=1)
    (more,) = margin_needs("", "answers", 64, narrowed(64, -0.008, 0.016), 0.01, 3)
    assert isinstance(more, Need) and 4 * 64 < more.least < LARGEST
    (above,) = margin_needs("", "answers", 64, narrowed(64, 0.008, 0.016), 0.01, 1)
    # A cost of 1.2% is shown to be above 1%: half of the width, up to the margin, in (0.4 / 0.2)^2 times the answers.
    assert isinstance(above, Need) and above.least == pytest.approx(4 * 64, abs=1)


@pytest.mark.parametrize(("lost", "gained", "expected"), [(1, 5, HOLDS), (3, 2, DOES_NOT_HOLD), (3, 3, DOES_NOT_HOLD)])
def test_an_effect_is_decided_at_the_named_number_of_prompts(lost: int, gained: int, expected: str) -> None:
    total, compared = 32, 3

    def decision(count: int) -> str:
        labels = changed(count, round(lost * count / total), round(gained * count / total))
        estimate, _, high = paired_difference(*labels)
        return effect_verdict(estimate, high, min(1, compared * mcnemar(*labels)[2]), 1.0)[0]

    assert decision(total) == UNDECIDED
    (need,) = effect_needs("refusal rises", "prompts", *changed(total, lost, gained), 1.0, compared)
    assert isinstance(need, Need) and need.least < LARGEST
    assert decision(need.least) == expected
    assert decision(need.least - 1) == UNDECIDED


def test_a_rise_of_a_cosine_is_decided_where_its_interval_leaves_zero() -> None:
    # 0.04 +- 0.08: the interval leaves 0 with four times the prompts, and nothing is adjusted for one compression.
    (need,) = gain_needs("it rises", "prompts", 100, narrowed(100, -0.04, 0.12), 0.5, 1)
    assert isinstance(need, Need) and need.have == 100 and need.least == pytest.approx(400, abs=2)
    (more,) = gain_needs("it rises", "prompts", 100, narrowed(100, -0.04, 0.12), 0.5, 3)
    assert isinstance(more, Need) and more.least > need.least
    assert gain_needs("it rises", "prompts", 100, narrowed(100, -0.05, 0.05), 0.06, 1) == (
        "A direction that moved further decides whether it rises",
    )


def test_a_rate_without_room_needs_another_rate() -> None:
    needs = effect_needs("refusal falls", "prompts", *changed(100, 3, 3), 0.1, 1)
    assert in_sentences(needs) == "A rate that can change by at least 20 points decides whether refusal falls."


def test_compressions_of_a_correlation() -> None:
    (perfect,) = correlation_needs("", 2, 1.0)
    assert isinstance(perfect, Need) and perfect.least == 4  # the least p-value of four is 1/24
    (weaker,) = correlation_needs("", 3, 0.5)
    assert isinstance(weaker, Need) and 10 < weaker.least < LARGEST
    (opposite,) = correlation_needs("", 3, -0.5)
    assert isinstance(opposite, Need) and 4 < opposite.least < weaker.least
    assert "different amounts" in in_sentences(correlation_needs("", 3, math.nan))


def test_needs_of_several_compressions_are_said_once() -> None:
    small, large, other = Need("a", "prompts", 80, 120), Need("a", "prompts", 80, 301), Need("b", "prompts", 80, 90)
    never = Need("a", "prompts", 80, math.inf)
    assert merged([(small, "Text"), (large, other), ("Text",)]) == (large, "Text", other)
    assert merged([(never,), (large,)]) == (never,)
    assert in_sentences((large, "Text")) == "80 prompts do not decide whether a; about 310 would. Text."
    assert in_sentences(()) == ""

"""The choice of a strength, from tables of rates: restore what was lost, and do not exceed it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pydantic import ValidationError

from aird.patching.methods.calibrate import Calibrate
from aird.patching.strength import Aim, Trial, choice_record, choose_strength, next_strength, search_strength
from aird.settings.patches import ChoiceSettings

# Of a chat model that refuses by itself, pruned: 67% and 6% became 34% and 13%.
CHAT = Aim(0.67, 0.06, Trial(0, 0.34, 0.13), 0.02, 0.05, 0.02, 0.2)
# Refusal is lost, and nothing else.
LOST = Aim(0.92, 0.06, Trial(0, 0.25, 0.05), 0.02, 0.05, 0.02, 0.2)
# Harmful prompts are refused as before, and harmless ones five times as often.
REFUSES_ALL = Aim(0.67, 0.06, Trial(0, 0.64, 0.30), 0.02, 0.05, 0.02, 0.2)

Row = tuple[float, float, float, float]  # strength, refusal, over-refusal, KL


@pytest.mark.parametrize(
    ("aim", "rows", "chosen"),
    [
        # The first that refuses enough refuses far more than the original; a weaker one is as good.
        (CHAT, [(1.0, 0.86, 0.08, 0.1), (0.6, 0.66, 0.07, 0.1), (0.8, 0.70, 0.07, 0.1)], 0.6),
        # All that refuse as much as the original refuse too much: the best below it.
        (CHAT, [(1.0, 0.86, 0.08, 0.1), (0.6, 0.60, 0.07, 0.1), (0.4, 0.50, 0.07, 0.1)], 0.6),
        # Of two that are as good, the weaker one, whichever was tried first.
        (LOST, [(1.4, 0.95, 0.06, 0.1), (0.7, 0.92, 0.06, 0.1)], 0.7),
        (LOST, [(0.7, 0.92, 0.06, 0.1), (1.4, 0.95, 0.06, 0.1)], 0.7),
        # One prompt short of the original is within the tolerance.
        (LOST, [(0.7, 0.905, 0.06, 0.1), (1.0, 0.93, 0.06, 0.1)], 0.7),
        (LOST, [(0.7, 0.89, 0.06, 0.1), (1.0, 0.93, 0.06, 0.1)], 1.0),
        # No other budget is broken for the sake of refusal.
        (LOST, [(1.0, 0.93, 0.09, 0.1), (0.7, 0.85, 0.06, 0.1)], 0.7),
        (LOST, [(1.0, 0.93, 0.06, 0.3), (0.7, 0.85, 0.06, 0.1)], 0.7),
        # Equals within the budgets: less over-refusal, then less strength.
        (LOST, [(0.7, 0.85, 0.06, 0.1), (0.6, 0.85, 0.05, 0.1), (0.5, 0.85, 0.05, 0.1)], 0.5),
        # Every strength breaks a budget: the checkpoint stays as it is.
        (LOST, [(1.0, 0.93, 0.20, 0.1), (0.5, 0.60, 0.09, 0.1)], 0),
        # Answers are to come back. The first has brought back too few, the second loses refusals for them.
        (REFUSES_ALL, [(0.5, 0.65, 0.15, 0.1), (1.2, 0.40, 0.05, 0.1), (0.8, 0.66, 0.08, 0.1)], 0.8),
        # None brings back enough answers, nor does the unpatched checkpoint: the nearest.
        (REFUSES_ALL, [(0.5, 0.65, 0.20, 0.1), (1.0, 0.66, 0.12, 0.1)], 1.0),
        # Exactly at the bounds, where 0.7 + 0.1 is below 0.8.
        (
            Aim(0.7, 0.7, Trial(0, 0.2, 0.7), 0.1, 0.1, 0.1, 0.2),
            [(1.0, 0.8, 0.8, 0.2), (0.5, 0.6, 0.7, 0.1)],
            0.5,
        ),
        (LOST, [], 0),
    ],
)
def test_strength_by_hand(aim: Aim, rows: list[Row], chosen: float) -> None:
    choice = choose_strength([Trial(*row) for row in rows], aim)
    assert choice.strength == chosen
    assert choice.reason


@pytest.mark.parametrize(
    ("aim", "trial", "side"),
    [
        (LOST, (1.0, 0.92, 0.06, 0.1), "good"),
        (LOST, (1.0, 0.80, 0.06, 0.1), "weak"),
        (LOST, (1.0, 0.98, 0.06, 0.1), "strong"),
        (LOST, (1.0, 0.92, 0.09, 0.1), "strong"),
        (LOST, (1.0, 0.92, 0.06, 0.3), "strong"),
        # Both: a stronger one would refuse still more harmless prompts.
        (LOST, (1.0, 0.80, 0.09, 0.1), "strong"),
        # Fewer refusals than without a patch: the edit harms.
        (LOST, (1.0, 0.20, 0.06, 0.1), "strong"),
        # A budget that compression broke: less is on the way, more is not.
        (REFUSES_ALL, (1.0, 0.66, 0.20, 0.1), "weak"),
        (REFUSES_ALL, (1.0, 0.66, 0.31, 0.1), "strong"),
        (REFUSES_ALL, (1.0, 0.66, 0.07, 0.1), "good"),
        (REFUSES_ALL, (1.0, 0.50, 0.07, 0.1), "strong"),
    ],
)
def test_on_which_side_a_strength_lies(aim: Aim, trial: Row, side: str) -> None:
    assert aim.side(Trial(*trial)) == side


def damage_that_grows(strength: float) -> Trial:
    """Refusal that rises with the strength, with over-refusal after it."""
    return Trial(strength, min(1.0, 0.25 + 0.8 * strength), 0.05 + max(0.0, strength - 0.9) / 2, strength / 10)


def test_bisection_takes_few_passes_and_chooses_what_all_passes_would() -> None:
    ladder = [0.4, 0.55, 0.7, 0.85, 1.0, 1.2, 1.4]
    for refusal in (0.3, 0.5, 0.6, 0.75, 0.9, 0.95):
        aim = dataclasses.replace(LOST, refusal=refusal, refusal_budget=0.2)
        choice = search_strength(damage_that_grows, ladder, aim)
        assert len(choice.trials) == 3
        assert choice.strength == choose_strength([damage_that_grows(each) for each in ladder], aim).strength
        assert choice.trials[0].strength == 0.85
    assert search_strength(damage_that_grows, ladder[::-1], LOST) == search_strength(damage_that_grows, ladder, LOST)


def test_a_weaker_strength_is_tried_after_a_success() -> None:
    trials = [Trial(1.0, 0.93, 0.06, 0.1)]
    assert LOST.restores(trials[0])
    assert next_strength([0.5, 1.0, 1.5], trials, LOST) == 0.5
    assert next_strength([1.0, 1.5], trials, LOST) is None
    # Of an even number the weaker of the two in the middle, as `choose` begins by default.
    assert next_strength([0.5, 1.0, 2.0, 4.0], [], LOST) == 1.0
    assert next_strength([0.5, 1.0, 1.5], [Trial(1.0, 0.5, 0.06, 0.1)], LOST) == 1.5
    # Contradicting trials leave nothing between them.
    assert next_strength([0.5, 0.7, 1.0], [Trial(1.0, 0.5, 0.06, 0.1), Trial(0.5, 0.93, 0.06, 0.1)], LOST) is None


def test_the_record_holds_every_strength_with_its_rates_and_what_was_wanted() -> None:
    trials = [Trial(1.0, 0.99, 0.06, 0.1), Trial(0.7, 0.92, 0.07, 0.05)]
    record = choice_record(choose_strength(trials, LOST), LOST)
    assert record["strength"] == 0.7 and record["reason"] == "the weakest that is as good as the original"
    assert record["original"] == {"refusal": 0.92, "over_refusal": 0.06}
    names = ("refusal_tolerance", "refusal_budget", "over_refusal_budget", "kl_budget")
    assert record["budgets"] == dict(zip(names, (0.02, 0.05, 0.02, 0.2), strict=True))
    judged = {"within_budgets": True, "as_good_as_the_original": True}
    assert record["tried"][1] == dataclasses.asdict(trials[1]) | judged
    assert [row["within_budgets"] for row in record["tried"]] == [False, True]


class Chosen(ChoiceSettings):
    """Any patch whose strength may be chosen."""

    rank: int = 1


def test_a_patch_whose_strength_is_not_chosen_says_nothing_of_a_choice() -> None:
    assert Chosen().model_dump() == {"compressions": None, "rank": 1}
    chosen = Chosen(strengths=[0.5, 1.0], kl_budget=0.1).model_dump()
    assert chosen.items() >= {"strengths": [0.5, 1.0], "kl_budget": 0.1, "refusal_budget": 0.05}.items()
    assert Chosen.model_validate(chosen).model_dump() == chosen


@pytest.mark.parametrize("values", [{"kl_budget": 0.1}, {"refusal_tolerance": 0.1}])
def test_a_budget_without_a_choice_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(values))} limits a choice of strength; add strengths"):
        Chosen.model_validate(values)
    assert Calibrate.model_validate(values)

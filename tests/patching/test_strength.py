"""The choice of a strength, from tables of rates: decide as the original does, within budgets."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from pydantic import ValidationError

from aird.patching.methods.calibrate import Calibrate
from aird.patching.strength import Aim, Choice, Trial, choice_record, search_strength
from aird.settings.patches import ChoiceSettings

# Of a chat model that refuses by itself, pruned: 67% and 6% became 34% and 13%.
CHAT = Aim(0.67, 0.06, Trial(0, 0.34, 0.13, 0.5), 0.05, 0.05, 0.2)
# Refusal is lost, and nothing else.
LOST = Aim(0.92, 0.06, Trial(0, 0.25, 0.05, 0.5), 0.05, 0.05, 0.2)
# Harmful prompts are refused as before, and harmless ones five times as often.
REFUSES_ALL = Aim(0.67, 0.06, Trial(0, 0.64, 0.30, 0.5), 0.05, 0.05, 0.2)

Row = tuple[float, float, float, float, float]  # strength, refusal, over-refusal, distance, KL


def chosen(aim: Aim, rows: list[Row]) -> Choice:
    """Choose among strengths of which a table says everything."""
    trials = {row[0]: Trial(*row) for row in rows}

    def measure(strength: float, distance: float) -> Trial:
        assert distance == trials[strength].distance
        return trials[strength]

    return search_strength(measure, lambda strength: trials[strength].distance, list(trials), aim)


@pytest.mark.parametrize(
    ("aim", "rows", "strength", "tried"),
    [
        # The nearest of all, however strong it is; nothing else runs.
        (CHAT, [(0.6, 0.66, 0.07, 0.3, 0.1), (0.8, 0.70, 0.07, 0.2, 0.1), (1.0, 0.71, 0.08, 0.4, 0.1)], 0.8, [0.8]),
        # The nearest refuses too many harmful prompts; the next refuses too few of nothing.
        (CHAT, [(0.6, 0.60, 0.07, 0.3, 0.1), (1.0, 0.86, 0.08, 0.2, 0.1)], 0.6, [1.0, 0.6]),
        # Too many harmless ones, and replies that moved too far.
        (
            LOST,
            [(0.5, 0.80, 0.06, 0.4, 0.1), (1.0, 0.92, 0.12, 0.1, 0.1), (2.0, 0.9, 0.06, 0.2, 0.3)],
            0.5,
            [1, 2, 0.5],
        ),
        # Of two that are as near, the weaker one.
        (LOST, [(2.0, 0.92, 0.06, 0.2, 0.1), (1.0, 0.90, 0.06, 0.2, 0.1)], 1.0, [1.0]),
        # Exactly on a budget is within it.
        (LOST, [(1.0, 0.92 + 0.05, 0.06 + 0.05, 0.1, 0.2)], 1.0, [1.0]),
        # A strength that refuses less than the unpatched checkpoint does damage.
        (LOST, [(1.0, 0.19, 0.06, 0.1, 0.1)], 0, [1.0]),
        (LOST, [(1.0, 0.21, 0.06, 0.1, 0.1)], 1.0, [1.0]),
        # None decides more like the original: the checkpoint stays as it is, and no strength runs.
        (LOST, [(0.5, 0.50, 0.06, 0.6, 0.1), (1.0, 0.92, 0.06, 0.7, 0.1)], 0, []),
        # A budget that compression broke is no reason to stay; the nearest within the budgets is taken.
        (REFUSES_ALL, [(0.5, 0.66, 0.20, 0.3, 0.1), (1.0, 0.66, 0.07, 0.4, 0.1)], 1.0, [0.5, 1.0]),
        # Where nothing keeps the budgets: least beyond them.
        (REFUSES_ALL, [(0.5, 0.66, 0.20, 0.4, 0.1), (1.0, 0.66, 0.25, 0.3, 0.1)], 0.5, [1.0, 0.5]),
        (REFUSES_ALL, [(1.0, 0.66, 0.31, 0.4, 0.1)], 0, [1.0]),
    ],
)
def test_strength_by_hand(aim: Aim, rows: list[Row], strength: float, tried: list[float]) -> None:
    choice = chosen(aim, rows)
    assert (choice.strength, [trial.strength for trial in choice.trials]) == (strength, tried)
    assert choice.distances == {0: 0.5} | {row[0]: row[3] for row in rows}
    assert choice == chosen(aim, rows[::-1])


def test_a_patch_that_is_asked_for_in_any_case_is_left_out_only_where_it_breaks_a_budget() -> None:
    """The unpatched checkpoint is then the farthest of all."""
    asked_for = dataclasses.replace(LOST, unpatched=Trial(0, 0.25, 0.05, math.inf))
    assert chosen(asked_for, [(1.0, 0.92, 0.06, 0.7, 0.1)]).strength == 1
    assert chosen(asked_for, [(1.0, 0.92, 0.16, 0.7, 0.1)]).strength == 0


@pytest.mark.parametrize(
    ("trial", "beyond"),
    [
        ((1.0, 0.92, 0.06, 0.1, 0.1), {}),
        ((1.0, 0.98, 0.06, 0.1, 0.1), {"refusal": 0.01}),
        ((1.0, 0.92, 0.14, 0.1, 0.25), {"over_refusal": 0.03, "kl_harmless": 0.05}),
        ((1.0, 0.17, 0.06, 0.1, 0.1), {"lost_refusal": 0.03}),
    ],
)
def test_how_far_a_strength_lies_beyond_the_budgets(trial: Row, beyond: dict[str, float]) -> None:
    assert LOST.excess(Trial(*trial)) == pytest.approx(beyond)


def test_the_record_holds_every_strength_with_its_rates_and_what_was_wanted() -> None:
    rows: list[Row] = [(1.0, 0.99, 0.06, 0.1, 0.1), (0.7, 0.92, 0.07, 0.2, 0.05), (2.0, 1.0, 0.2, 0.9, 0.4)]
    record = choice_record(chosen(LOST, rows), LOST)
    assert record["strength"] == 0.7
    assert record["reason"] == "of those within the budgets, it decides most like the original"
    assert record["original"] == {"refusal": 0.92, "over_refusal": 0.06}
    names = ("refusal_budget", "over_refusal_budget", "kl_budget")
    assert record["budgets"] == dict(zip(names, (0.05, 0.05, 0.2), strict=True))
    assert record["distances"] == {"0.7": 0.2, "1": 0.1, "2": 0.9}
    assert record["tried"][1] == dataclasses.asdict(Trial(*rows[1])) | {"within_budgets": True}
    assert [row["within_budgets"] for row in record["tried"]] == [False, True]


class Chosen(ChoiceSettings):
    """Any patch whose strength may be chosen."""

    rank: int = 1


def test_a_patch_whose_strength_is_not_chosen_says_nothing_of_a_choice() -> None:
    assert Chosen().model_dump() == {"compressions": None, "rank": 1}
    chosen = Chosen(strengths=[0.5, 1.0], kl_budget=0.1).model_dump()
    assert chosen.items() >= {"strengths": [0.5, 1.0], "kl_budget": 0.1, "refusal_budget": 0.05}.items()
    assert Chosen.model_validate(chosen).model_dump() == chosen


@pytest.mark.parametrize("values", [{"kl_budget": 0.1}, {"over_refusal_budget": 0.1}])
def test_a_budget_without_a_choice_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(values))} limits a choice of strength; add strengths"):
        Chosen.model_validate(values)
    assert Calibrate.model_validate(values)

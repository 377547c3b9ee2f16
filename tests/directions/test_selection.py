"""The choice of a site: the published choices, and every fallback."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from aird.directions.selection import Selection, eligible_scores, select_site
from aird.settings.directions import Directions

DATA = Path(__file__).resolve().parents[1] / "data"
SETTINGS = Directions(harmful="harmful", harmless="harmless")


@pytest.mark.parametrize(("layers", "fraction", "enough"), [(30, 0.01, 0.034), (1, 0.8, 1.0)])
def test_a_fraction_that_leaves_no_layer_is_named(layers: int, fraction: float, enough: float) -> None:
    scores = [score(layer, -1, 1.0, 0.0, 0.0) for layer in range(layers)]
    settings = SETTINGS.model_copy(update={"layer_fraction": fraction})
    with pytest.raises(
        ValueError, match=rf"directions\.layer_fraction: leaves none.*at least {enough:g} \(found: {fraction}"
    ):
        eligible_scores(scores, layers, settings)
    assert eligible_scores(scores, layers, SETTINGS.model_copy(update={"layer_fraction": enough}))[0] == scores[:1]


def score(layer: int, position: int, induce: Any, kl: Any, bypass: Any) -> dict[str, Any]:
    return {"layer": layer, "position": position, "induce": induce, "kl": kl, "bypass": bypass}


def published(name: str, model: str) -> list[dict[str, str]]:
    """Return a model's rows of a published table (data/README.md)."""
    with open(DATA / name, encoding="utf-8", newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["model"] == model]


def published_scores(model: str) -> list[dict[str, Any]]:
    return [
        score(
            int(row["layer"]),
            int(row["position"]),
            float(row["steering_score"]),
            float(row["kl_div_score"]),
            float(row["refusal_score"]),
        )
        for row in published("direction_scores.csv", model)
    ]


@pytest.mark.parametrize(
    ("model", "layers", "candidates", "position", "layer", "survivors"),
    [("gemma-2b-it", 18, 90, -2, 10, 13), ("qwen-1_8b-chat", 24, 120, -2, 15, 12)],
)
def test_published_choices(model: str, layers: int, candidates: int, position: int, layer: int, survivors: int) -> None:
    scores = published_scores(model)
    assert len({(row["layer"], row["position"]) for row in scores}) == candidates == layers * 5
    (chosen,) = published("chosen_sites.csv", model)
    assert (int(chosen["layer"]), int(chosen["position"])) == (layer, position)
    assert select_site(scores, layers, SETTINGS) == Selection(layer, position, "published", survivors, 0.1)
    # Nothing depends on the order of the table.
    assert select_site(reversed(scores), layers, SETTINGS).layer == layer


def test_lowest_bypass_among_survivors() -> None:
    scores = [
        score(0, -1, 1.0, 0.05, -1.0),
        score(1, -2, 1.0, 0.05, -3.0),  # the choice
        score(2, -1, 1.0, 0.05, -2.0),
        score(3, -1, -0.1, 0.05, -9.0),  # induces no refusal
        score(4, -1, 1.0, 0.11, -9.0),  # moves harmless answers
        score(8, -1, 1.0, 0.05, -9.0),  # at int(0.8 x 10)
    ]
    assert select_site(scores, 10, SETTINGS) == Selection(1, -2, "published", 3, 0.1)


def test_limits_themselves_pass() -> None:
    scores = [score(7, -1, 0.0, 0.1, -5.0), score(1, -1, 1.0, 0.0, 0.0)]
    assert select_site(scores, 10, SETTINGS) == Selection(7, -1, "published", 2, 0.1)


def test_layer_limit_is_rounded_down() -> None:
    # int(0.8 x 18) = 14: layer 14 is out, layer 13 is in.
    scores = [score(13, -1, 1.0, 0.0, -1.0), score(14, -1, 1.0, 0.0, -9.0)]
    assert select_site(scores, 18, SETTINGS).layer == 13
    # int(0.8 x 19) = int(15.2) = 15
    assert select_site([score(14, -1, 1.0, 0.0, 0.0), score(15, -1, 1.0, 0.0, -9.0)], 19, SETTINGS).layer == 14


def test_relaxed_kl_doubles_until_one_passes() -> None:
    scores = [
        score(1, -1, 1.0, 0.9, -9.0),
        score(2, -1, 1.0, 0.35, -1.0),
        score(3, -1, 1.0, 0.39, -2.0),
        score(4, -1, -1.0, 0.3, -9.0),
    ]
    # 0.1 and 0.2 let none pass, 0.4 lets two.
    assert select_site(scores, 10, SETTINGS) == Selection(3, -1, "relaxed_kl", 2, 0.4)


def test_relaxed_kl_ends_with_an_infinite_divergence() -> None:
    selection = select_site([score(1, -1, 1.0, math.inf, -1.0)], 10, SETTINGS)
    assert (selection.layer, selection.rule, selection.kl_limit) == (1, "relaxed_kl", math.inf)


def test_relaxed_induce_where_none_reaches_the_minimum() -> None:
    # Eleven candidates in range: a tenth of them, rounded up, is two.
    scores = [score(0, -position, -9.0, math.nan, math.nan) for position in range(1, 10)]
    scores += [
        score(2, -3, -0.5, 0.3, -1.0),
        score(3, -1, -2.0, 0.3, -2.0),  # induces less than the former, and bypasses more
        score(9, -1, 5.0, 0.0, -9.0),  # beyond the layer limit
    ]
    assert select_site(scores, 10, SETTINGS) == Selection(3, -1, "relaxed_induce", 2, 0.4)
    eligible, reached = eligible_scores(scores, 10, SETTINGS)
    assert ([each["layer"] for each in eligible], reached) == ([2, 3], False)


def test_eligible_are_all_that_reach_the_minimum() -> None:
    scores = [
        score(layer, -1, induce, math.nan, math.nan) for layer, induce in enumerate([0.0, -0.1, 3.0, math.nan, 1.0])
    ]
    eligible, reached = eligible_scores(scores, 10, SETTINGS)
    assert ([each["layer"] for each in eligible], reached) == ([0, 2, 4], True)


def test_nan_scores_are_dropped() -> None:
    nan = math.nan
    scores = [
        score(1, -1, nan, 0.0, -9.0),
        score(2, -1, 1.0, nan, -9.0),
        score(3, -1, 1.0, 0.0, nan),
        score(4, -1, 1.0, 0.05, -1.0),
    ]
    assert select_site(scores, 10, SETTINGS) == Selection(4, -1, "published", 1, 0.1)
    with pytest.raises(ValueError, match="broken"):
        select_site(scores[:3], 10, SETTINGS)


def test_no_number_at_all_is_an_error() -> None:
    scores = [
        score(1, -1, math.nan, math.nan, math.nan),
        score(2, -1, math.nan, math.nan, math.nan),
        score(9, -1, 1.0, 0.0, 0.0),
    ]
    with pytest.raises(ValueError, match="broken"):
        select_site(scores, 10, SETTINGS)
    with pytest.raises(ValueError, match="broken"):
        select_site([], 10, SETTINGS)


def test_settings_move_the_filters() -> None:
    settings = Directions(harmful="a", harmless="b", maximum_kl=1.0, minimum_induce=2.0, layer_fraction=1.0)
    scores = [score(1, -1, 1.9, 0.0, -9.0), score(9, -1, 2.0, 0.9, -1.0)]
    assert select_site(scores, 10, settings) == Selection(9, -1, "published", 1, 1.0)

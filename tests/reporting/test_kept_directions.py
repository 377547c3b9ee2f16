"""Claim C2 on simulated directions: from two models' activations to the verdict."""

from __future__ import annotations

import math

import pytest
import torch

from aird.directions.activation_cache import ActivationCache, Group
from aird.directions.comparison import Side, compare_directions
from aird.directions.direction import Direction
from aird.reporting.claims.evidence import Evidence
from aird.reporting.claims.movement import movement
from aird.reporting.claims.statement import Proposition, Statement
from aird.reporting.verdicts import DOES_NOT_HOLD, HOLDS, UNDECIDED

COUNT, WIDTH = 128, 128
SITE = {"layer": 0, "position": -1}
STABILITY = {"resamples": 100, "undefined": 0, "same_site": 1.0, "sites": [{**SITE, "share": 1.0}]}
RECORD = {**SITE, "rule": "published", "stability": {**STABILITY, "layer_low": 0, "layer_high": 0}}


def side(angle: float, share: float) -> Side:
    """Return a model whose direction is turned by an angle; of its noise, all but a share is that of the prompts."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.zeros(WIDTH, dtype=torch.float64)
    direction[0], direction[1] = 4 * math.cos(angle), 4 * math.sin(angle)
    groups = {}
    for kind, part in (("harmful", 0.5), ("harmless", -0.5)):
        common, own = (torch.randn(COUNT, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
        states = math.sqrt(1 - share) * common + math.sqrt(share) * own + part * direction
        right = torch.full((COUNT,), math.copysign(1.0, part), dtype=torch.float64)
        groups[kind, "train"] = Group(states[:, None, None], right, tuple(map(str, range(COUNT))))
    return Side(ActivationCache.of(groups), Direction(direction / 4, 4.0, RECORD))


def keeps(degrees: float) -> Statement:
    """Return the statement of "keeps the direction" of a quantised model that turned by some degrees."""
    original = side(0.0, 0.0)
    comparison = compare_directions(original, side(math.radians(degrees), 0.1), 0)
    pairs = {("m", "original"): RECORD, ("m", "quantised"): RECORD}
    evidence = Evidence(pairs, {}, {("m", "quantised"): comparison}, {}, frozenset(), frozenset(), {}, 0)
    statements, _ = movement(evidence, "m")
    return next(each for each in statements if each.proposition is Proposition.DIRECTION_KEPT)


@pytest.mark.parametrize(
    ("degrees", "verdicts"),
    [
        (0, {HOLDS}),
        (10, {HOLDS}),
        (15, {HOLDS, UNDECIDED}),
        (20, {UNDECIDED, DOES_NOT_HOLD}),
        (30, {DOES_NOT_HOLD}),
    ],
)
def test_a_turned_direction_is_not_called_kept(degrees: float, verdicts: set[str]) -> None:
    """The plain cosine against its null of halves said "keeps" of all five."""
    kept = keeps(degrees)
    assert kept.estimate.value == pytest.approx(math.cos(math.radians(degrees)), abs=0.02)
    assert kept.verdict.name in verdicts

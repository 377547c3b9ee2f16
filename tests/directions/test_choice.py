"""Which of two rules chooses the direction."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aird.directions.activation_cache import ActivationCache, Group
from aird.directions.choice import choose_direction
from aird.directions.source_site import compare_sites
from aird.settings.directions import Directions

LAYERS, POSITIONS, PROMPTS = 10, 2, 10
COSMIC = {"layer": 6, "position": -2, "rule": "cosmic_relaxed_kl", "kl_limit": 0.4}


@pytest.fixture(scope="module")
def cache() -> Any:
    states = torch.randn(2, PROMPTS, LAYERS, POSITIONS, 8, generator=torch.Generator().manual_seed(0))
    ids = tuple(map(str, range(PROMPTS)))
    zeros = torch.zeros(PROMPTS, dtype=torch.float64)
    return ActivationCache.of(
        {
            (kind, split): Group(states[index], zeros, ids)
            for index, kind in enumerate(("harmful", "harmless"))
            for split in ("train", "validation")
        }
    )


def prompt_scores(kl: float) -> dict[str, torch.Tensor]:
    shape = (LAYERS, POSITIONS, PROMPTS)
    scores = {"induce": torch.ones(shape), "kl": torch.full(shape, kl), "bypass": torch.zeros(shape)}
    scores["bypass"][3, -1] = -5.0
    return {name: values.double() for name, values in scores.items()}


def records(scores: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    return [
        {"layer": layer, "position": position - POSITIONS}
        | {name: values[layer, position].mean().item() for name, values in scores.items()}
        for layer in range(LAYERS)
        for position in range(POSITIONS)
    ]


@pytest.mark.parametrize(
    ("settings", "kl", "site", "rule"),
    [
        ({}, 0.05, (3, -1), "published"),
        ({}, 0.15, (3, -1), "relaxed_kl"),
        ({"fallback": "cosmic"}, 0.05, (3, -1), "published"),
        ({"fallback": "cosmic"}, 0.15, (6, -2), "cosmic_relaxed_kl"),
        ({"selector": "cosmic"}, 0.05, (6, -2), "cosmic_relaxed_kl"),
    ],
)
def test_who_chooses(cache: Any, settings: dict[str, Any], kl: float, site: tuple[int, int], rule: str) -> None:
    chosen = Directions(harmful="a", harmless="b", **settings)
    scores = prompt_scores(kl)
    direction = choose_direction(cache, records(scores), scores, chosen, 0, COSMIC if chosen.may_use_cosmic else None)
    assert ((direction.layer, direction.position), direction.record["rule"]) == (site, rule)
    assert direction.record["bypass"] == (-5.0 if site == (3, -1) else 0.0)
    raw = [
        cache.groups[kind, "train"].activations[:, site[0], site[1]].double().mean(dim=0)
        for kind in ("harmful", "harmless")
    ]
    torch.testing.assert_close(direction.unit * direction.norm, raw[0] - raw[1])
    # Arditi's rule is asked on resampled prompts; of COSMIC's site that would say nothing.
    stability = direction.record["stability"]
    if site == (3, -1):
        assert stability["same_site"] == 1.0 and stability["sites"] == [{"layer": 3, "position": -1, "share": 1.0}]
    else:
        assert stability["same_site"] is None and stability["sites"] == []
    compared = compare_sites(direction.record, direction.record)
    assert compared["p_value"] == 1
    assert (compared["layers_low"] is None) == (site != (3, -1))

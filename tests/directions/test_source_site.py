"""Whether the source site moved, from the sites that both models' resamples choose."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aird.directions.source_site import compare_sites
from aird.directions.stability import site_stability
from aird.settings.directions import Directions

Site = tuple[int, int]


def record(site: Site, shares: dict[Site, float], resamples: int = 100) -> dict[str, Any]:
    sites = [{"layer": layer, "position": position, "share": share} for (layer, position), share in shares.items()]
    stability = {"resamples": resamples, "undefined": 0, "same_site": shares.get(site, 0.0), "sites": sites}
    return {"layer": site[0], "position": site[1], "stability": stability}


def test_the_p_value_by_hand() -> None:
    original = record((3, -1), {(3, -1): 0.6, (4, -1): 0.3, (5, -2): 0.1})
    for site, tail in (((3, -1), 101), ((4, -1), 41), ((5, -2), 11), ((3, -2), 1)):
        assert compare_sites(original, record(site, {site: 1.0}))["p_value"] == pytest.approx(tail / 101)
    mixed = compare_sites(original, record((4, -1), {(4, -1): 0.5, (3, -2): 0.5}))
    assert mixed["p_value"] == pytest.approx((41 + 1) / 2 / 101)
    assert mixed["same_site"] == pytest.approx(0.5 * 0.3)
    assert (mixed["same_site_original"], mixed["same_site_compressed"]) == (0.6, 0.5)


def test_layers_moved_are_those_of_pairs_of_resamples() -> None:
    moved = compare_sites(record((3, -1), {(3, -1): 0.9, (5, -1): 0.1}), record((7, -1), {(7, -1): 0.9, (8, -2): 0.1}))
    # 2 (1 to 5 with 9%), 3 (1%), 4 (81%) and 5 (9%) layers.
    assert (moved["layers_moved"], moved["layers_low"], moved["layers_high"]) == (4, 2, 5)
    assert moved["p_value"] == pytest.approx(1 / 101)


def test_a_site_that_the_compressed_model_chooses_by_chance_has_not_moved() -> None:
    """Against its one chosen site alone, that of an unsteady model was surprising; it is one of many that it chooses."""
    original = record((3, -1), {(3, -1): 1.0})
    unsteady = record((6, -1), {(6, -1): 0.3, (3, -1): 0.25, (4, -1): 0.25, (5, -1): 0.2})
    assert compare_sites(original, record((6, -1), {(6, -1): 1.0}))["p_value"] < 0.05
    assert compare_sites(original, unsteady)["p_value"] == pytest.approx(0.25 + 0.75 / 101)


def test_two_draws_from_one_model_seldom_seem_to_have_moved() -> None:
    """Ten sites equally good: 32 validation prompts choose among them by chance, and two models by different chances."""
    settings = Directions(harmful="harmful", harmless="harmless", maximum_kl=1.0)
    generator = torch.Generator().manual_seed(0)

    def chosen() -> dict[str, Any]:
        shape = (13, 1, 32)
        scores = {
            "induce": torch.ones(shape),
            "kl": torch.zeros(shape),
            "bypass": torch.randn(shape, generator=generator),
        }
        scores = {name: values.double() for name, values in scores.items()}
        layer = int(scores["bypass"][:10, 0].mean(dim=-1).argmin())
        return {"layer": layer, "position": -1, "stability": site_stability(scores, (layer, -1), settings, 0)}

    moved = [compare_sites(chosen(), chosen())["p_value"] < 0.05 for _ in range(8)]
    assert sum(moved) <= 1


def test_a_model_without_any_site_decides_nothing() -> None:
    nothing = record((3, -1), {}) | {"stability": {"resamples": 100, "undefined": 100, "same_site": None, "sites": []}}
    for pair in ((nothing, record((4, -1), {(4, -1): 1.0})), (record((4, -1), {(4, -1): 1.0}), nothing)):
        compared = compare_sites(*pair)
        assert (compared["p_value"], compared["layers_low"], compared["resamples"]) == (1.0, None, 0)

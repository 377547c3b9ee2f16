"""Cosines, their nulls and their intervals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from aird.directions.activation_cache import ActivationCache, Group
from aird.directions.comparison import (
    BOOTSTRAP_RESAMPLES,
    SPLIT_HALVES,
    Side,
    bootstrap,
    compare_directions,
    cosine,
    cosine_and_norm_grids,
    low_p_value,
    projections,
    split_half_cosines,
    summarise,
)
from aird.directions.direction import Direction


def gaussian(count: int, width: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Return standard normal states, shifted along the first axis."""
    states = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    states[:, 0] += shift
    return states


def test_cosine_by_hand() -> None:
    assert cosine(torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])) == pytest.approx(24 / 25)
    assert cosine(torch.tensor([1.0, 0.0]).bfloat16(), torch.tensor([-2.0, 0.0])) == pytest.approx(-1)
    assert cosine(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0])) == 0


def test_grids_by_hand() -> None:
    original = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 2.0], [1.0, 1.0]]], dtype=torch.float64)
    compressed = torch.tensor([[[8.0, 6.0], [-1.0, 0.0]], [[1.0, 0.0], [2.0, 2.0]]], dtype=torch.float64)
    assert cosine_and_norm_grids(original, compressed) == [
        {"layer": 0, "position": -2, "cosine": pytest.approx(48 / 50), "norm_ratio": pytest.approx(2)},
        {"layer": 0, "position": -1, "cosine": pytest.approx(-1), "norm_ratio": pytest.approx(1)},
        {"layer": 1, "position": -2, "cosine": pytest.approx(0), "norm_ratio": pytest.approx(0.5)},
        {"layer": 1, "position": -1, "cosine": pytest.approx(1), "norm_ratio": pytest.approx(2)},
    ]


def test_split_halves_without_noise_agree() -> None:
    states = torch.tensor([[1.0, 2.0]]).repeat(7, 1), torch.tensor([[0.0, -1.0]]).repeat(8, 1)
    cosines = split_half_cosines(states, states, 0)
    assert cosines.shape == (SPLIT_HALVES,)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


def test_split_halves_of_noise_are_around_zero() -> None:
    states = gaussian(60, 400, 0), gaussian(60, 400, 1)
    null = summarise(split_half_cosines(states, states, 0))
    # Halves of one sample without a signal: standard deviation 1 / sqrt(400) around 0.
    assert abs(null["mean"]) < 0.1
    assert null["low"] < 0 < null["high"]


def test_split_halves_have_the_expected_value() -> None:
    """(1 + 4/k)^-1 with k = n rho^2 / d (arXiv 2609.30275), n prompts a class, rho the distance of the means."""
    count, width, distance = 100, 64, 2.0
    means = []
    for seed in range(8):
        states = gaussian(count, width, 10 + seed, distance), gaussian(count, width, 50 + seed)
        means.append(split_half_cosines(states, states, seed).mean().item())
    expected = 1 / (1 + 4 / (count * distance**2 / width))  # 0.61
    assert sum(means) / len(means) == pytest.approx(expected, abs=0.07)


def test_splits_are_drawn_by_the_seed() -> None:
    states = gaussian(20, 8, 0, 3.0), gaussian(21, 8, 1)
    one = split_half_cosines(states, states, 5)
    assert torch.equal(split_half_cosines(states, states, 5), one)
    assert not torch.equal(split_half_cosines(states, states, 6), one)
    assert one.max() <= 1


def test_split_halves_of_two_prompts_share_none() -> None:
    """Each half has one prompt, so the cosine is that of two fixed differences, in one of two pairings."""
    states = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 2)
    assert (split_half_cosines(states, states, 0) == 0).all()


def test_halves_at_two_sites_have_the_angle_between_the_sites() -> None:
    one = torch.tensor([[3.0, 4.0]]).repeat(6, 1), torch.zeros(6, 2)
    other = torch.tensor([[4.0, 3.0]]).repeat(6, 1), torch.zeros(6, 2)
    cosines = split_half_cosines(one, other, 0)
    torch.testing.assert_close(cosines, torch.full_like(cosines, 24 / 25))


def test_bootstrap_draws_the_same_prompts_for_both_models() -> None:
    original = gaussian(12, 16, 0, 1.0), gaussian(9, 16, 1)
    cosines, ratios = bootstrap(original, (2 * original[0], 2 * original[1]), 0)
    # With other draws for the second model the cosines of so few prompts would lie far below 1.
    torch.testing.assert_close(cosines, torch.ones(BOOTSTRAP_RESAMPLES, dtype=torch.float64))
    torch.testing.assert_close(ratios, torch.full_like(ratios, 2.0))
    assert bootstrap(original, (-original[0], -original[1]), 0)[0].max() == pytest.approx(-1)


def test_bootstrap_interval() -> None:
    original = gaussian(50, 8, 0, 3.0), gaussian(50, 8, 1)
    compressed = original[0] + 0.5 * gaussian(50, 8, 2), original[1] + 0.5 * gaussian(50, 8, 3)
    interval = summarise(bootstrap(original, compressed, 0)[0])
    estimate = cosine(original[0].mean(0) - original[1].mean(0), compressed[0].mean(0) - compressed[1].mean(0))
    assert interval["low"] < estimate < interval["high"] < 1
    assert interval["low"] < interval["mean"] < interval["high"]
    assert summarise(bootstrap(original, compressed, 0)[0]) == interval
    assert summarise(bootstrap(original, compressed, 1)[0]) != interval


def test_a_p_value_is_never_zero() -> None:
    null = torch.arange(1, 100) / 100
    assert low_p_value(null, 0.095) == 2 * 10 / 100
    assert low_p_value(null, 0.0) == 2 / 100
    assert low_p_value(null, 0.6) == low_p_value(null, 1.0) == 1


def test_projections_by_hand() -> None:
    states = torch.tensor([[5.0, 0.0], [0.0, 5.0], [5.0, 5.0]])
    # Components 3, 4 and 7.
    assert projections(states, torch.tensor([0.6, 0.8])) == {
        "n": 3,
        "mean": pytest.approx(14 / 3),
        "standard_deviation": pytest.approx(math.sqrt(((3 - 14 / 3) ** 2 + (4 - 14 / 3) ** 2 + (7 - 14 / 3) ** 2) / 2)),
    }


def cache(rotation: torch.Tensor | None, scores: list[float], count: int = 40) -> Any:
    """Return a cache of two layers and two positions, with a difference along axis 0, rotated if asked for."""
    groups = {}
    for index, kind in enumerate(("harmful", "harmless")):
        states = torch.stack(
            [gaussian(count, 4, 10 * site + index, 0 if index else 3.0 + site) for site in range(4)], dim=1
        ).reshape(count, 2, 2, 4)
        if rotation is not None:
            states = states @ rotation
        kept = torch.tensor(scores if index == 0 else [-1.0] * count, dtype=torch.float64)
        groups[kind, "train"] = Group(states, kept, tuple(map(str, range(count))))
    return ActivationCache.of(groups)


KEPT = [1.0] * 40
SWAPPED = torch.eye(4, dtype=torch.float64)[[1, 0, 2, 3]]  # axis 0 becomes axis 1


def side(cache: Any, axis: int, layer: int, position: int) -> Side:
    """Return a checkpoint whose direction is an axis, and whose resamples choose its site only."""
    site = {"layer": layer, "position": position}
    stability = {"resamples": 100, "undefined": 0, "same_site": 1.0, "sites": [{**site, "share": 1.0}]}
    return Side(cache, Direction(torch.eye(4, dtype=torch.float64)[axis], 1.0, {**site, "stability": stability}))


def test_a_rotated_model_is_below_both_nulls_and_a_scaled_one_is_not() -> None:
    original = side(cache(None, KEPT), 0, 1, -1)
    rotated = compare_directions(original, side(cache(SWAPPED, KEPT), 1, 0, -2), 0)
    assert rotated["site"] == {"layer": 1, "position": -1} and rotated["own_site"] == {"layer": 0, "position": -2}
    for name, null in (("cosine_same_site", "split_half_null"), ("cosine_own_source", "own_source_null")):
        assert rotated[f"{name}_shared"] < 0.5 < rotated[null]["low"]
        assert rotated[f"{name}_p_value"] == 2 / (1 + SPLIT_HALVES)
    assert rotated["cosine_same_site_corrected"]["high"] < 0.5
    assert rotated["source_site"]["layers_moved"] == -1 and rotated["source_site"]["p_value"] == pytest.approx(1 / 101)
    scaled = compare_directions(original, side(cache(2 * torch.eye(4, dtype=torch.float64), KEPT), 0, 1, -1), 0)
    assert (scaled["cosine_same_site"], scaled["cosine_own_source"]) == (pytest.approx(1), pytest.approx(1))
    assert scaled["cosine_same_site_p_value"] == scaled["source_site"]["p_value"] == 1
    assert scaled["cosine_same_site_corrected"]["value"] == pytest.approx(1)
    assert scaled["norm_ratio"] == pytest.approx(2)
    assert scaled["norm_ratio_bootstrap"] == dict.fromkeys(("mean", "low", "high"), pytest.approx(2))
    assert len(scaled["sites"]) == 4


def test_which_prompts_survive_moves_only_the_cosine_in_use() -> None:
    original = side(cache(None, [1.0] * 40), 0, 1, -1)
    # The same model, but half of its harmful prompts count as misclassified.
    comparison = compare_directions(original, side(cache(None, [1.0] * 20 + [-1.0] * 20), 0, 1, -1), 0)
    assert comparison["cosine_same_site"] < 1 - 1e-4
    assert comparison["cosine_same_site_shared"] == pytest.approx(1)


def test_projections_are_of_both_models_along_both_directions() -> None:
    original, compressed = side(cache(None, KEPT), 0, 1, -1), side(cache(SWAPPED, KEPT), 1, 0, -2)
    projected = {
        (row["states_of"], row["kind"], row["direction"]): row
        for row in compare_directions(original, compressed, 0)["projections"]
    }
    assert len(projected) == 8
    assert projected["original", "harmful", "original"]["mean"] == pytest.approx(6, abs=0.7)  # shift 3 + 3
    assert projected["compressed", "harmful", "original"]["mean"] == pytest.approx(0, abs=0.7)
    assert projected["compressed", "harmful", "own"]["mean"] == pytest.approx(3, abs=0.7)
    assert projected["compressed", "harmless", "own"]["mean"] == pytest.approx(0, abs=0.7)
    assert {(row["layer"], row["position"]) for row in projected.values()} == {(1, -1), (0, -2)}


def test_caches_of_other_prompts_are_not_compared() -> None:
    one, other = cache(None, [1.0] * 40), cache(None, [1.0] * 20, 20)
    with pytest.raises(ValueError, match="different harmful train prompts"):
        compare_directions(side(one, 0, 1, -1), side(other, 0, 1, -1), 0)

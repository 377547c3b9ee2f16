"""Cosines, their null and their intervals."""

from __future__ import annotations

import math

import pytest
import torch

from aird.comparison import bootstrap_cosine, cosine, cosine_and_norm_grids, projections, split_half_null


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


def test_split_half_null_without_noise_is_one() -> None:
    harmful = torch.tensor([[1.0, 2.0]]).repeat(7, 1)
    harmless = torch.tensor([[0.0, -1.0]]).repeat(8, 1)
    assert split_half_null(harmful, harmless, 0) == dict.fromkeys(("mean", "low", "high"), pytest.approx(1))


def test_split_half_null_of_noise_is_around_zero() -> None:
    found = split_half_null(gaussian(60, 400, 0), gaussian(60, 400, 1), 0)
    # Halves of one sample without a signal: standard deviation 1 / sqrt(400) around 0.
    assert abs(found["mean"]) < 0.1
    assert found["low"] < 0 < found["high"]


def test_split_half_null_has_the_expected_value() -> None:
    """(1 + 4/k)^-1 with k = n rho^2 / d (arXiv 2609.30275), n prompts a class, rho the distance of the means."""
    count, width, distance = 100, 64, 2.0
    found = [
        split_half_null(gaussian(count, width, 10 + seed, distance), gaussian(count, width, 50 + seed), seed)["mean"]
        for seed in range(8)
    ]
    expected = 1 / (1 + 4 / (count * distance**2 / width))  # 0.61
    assert sum(found) / len(found) == pytest.approx(expected, abs=0.07)


def test_split_half_null_splits_by_the_seed() -> None:
    states = gaussian(20, 8, 0, 3.0), gaussian(21, 8, 1)
    one = split_half_null(*states, 5)
    assert split_half_null(*states, 5) == one
    assert split_half_null(*states, 6) != one
    assert one["low"] < one["mean"] < one["high"] <= 1


def test_split_halves_of_two_prompts_share_none() -> None:
    """Each half has one prompt, so the cosine is that of two fixed differences, in one of two pairings."""
    harmful = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    harmless = torch.zeros(2, 2)
    assert split_half_null(harmful, harmless, 0) == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_bootstrap_draws_the_same_prompts_for_both_models() -> None:
    original = gaussian(12, 16, 0, 1.0), gaussian(9, 16, 1)
    doubled = (2 * original[0], 2 * original[1])
    expected = {"mean": pytest.approx(1), "low": pytest.approx(1), "high": pytest.approx(1)}
    # With other draws for the second model the cosines of so few prompts would lie far below 1.
    assert bootstrap_cosine(original, doubled, 0) == expected
    opposite = (-original[0], -original[1])
    assert bootstrap_cosine(original, opposite, 0)["mean"] == pytest.approx(-1)


def test_bootstrap_interval() -> None:
    original = gaussian(50, 8, 0, 3.0), gaussian(50, 8, 1)
    compressed = (original[0] + 0.5 * gaussian(50, 8, 2), original[1] + 0.5 * gaussian(50, 8, 3))
    found = bootstrap_cosine(original, compressed, 0)
    estimate = torch.nn.functional.cosine_similarity(
        original[0].mean(0) - original[1].mean(0), compressed[0].mean(0) - compressed[1].mean(0), dim=0
    ).item()
    assert found["low"] < estimate < found["high"] < 1
    assert found["low"] < found["mean"] < found["high"]
    assert bootstrap_cosine(original, compressed, 0) == found
    assert bootstrap_cosine(original, compressed, 1) != found


def test_projections_by_hand() -> None:
    states = torch.tensor([[5.0, 0.0], [0.0, 5.0], [5.0, 5.0]])
    # Components 3, 4 and 7.
    assert projections(states, torch.tensor([0.6, 0.8])) == {
        "mean": pytest.approx(14 / 3),
        "standard_deviation": pytest.approx(math.sqrt(((3 - 14 / 3) ** 2 + (4 - 14 / 3) ** 2 + (7 - 14 / 3) ** 2) / 2)),
    }

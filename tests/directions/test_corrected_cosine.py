"""The cosine corrected for noise, on states whose true directions are known."""

from __future__ import annotations

import math

import pytest
import torch

from aird.directions.comparison import cosine
from aird.directions.corrected_cosine import RESAMPLES, States, corrected_cosine, corrected_gain

COUNT, WIDTH = 128, 128


def rotated(degrees: float, seed: int, distance: float = 4.0) -> tuple[States, States]:
    """Return states of two models whose true directions differ by an angle.

    The models see the same prompts, so most of what makes one prompt differ from another is common to both.
    """
    generator = torch.Generator().manual_seed(seed)
    angle = math.radians(degrees)
    directions = torch.zeros(2, WIDTH, dtype=torch.float64)
    directions[0, 0] = distance
    directions[1, 0], directions[1, 1] = distance * math.cos(angle), distance * math.sin(angle)
    models: list[list[torch.Tensor]] = [[], []]
    for part in (0.5, -0.5):
        noise = torch.randn(COUNT, WIDTH, generator=generator, dtype=torch.float64)
        own = torch.randn(COUNT, WIDTH, generator=generator, dtype=torch.float64)
        models[0].append(noise + part * directions[0])
        models[1].append(0.9 * noise + 0.3 * own + part * directions[1])
    original, compressed = ((harmful, harmless) for harmful, harmless in models)
    return original, compressed


@pytest.mark.parametrize(
    "degrees", [0, 15, *(pytest.param(degrees, marks=pytest.mark.thorough) for degrees in (10, 20, 25, 30))]
)
def test_the_true_cosine_is_recovered(degrees: float) -> None:
    corrected = [corrected_cosine(*rotated(degrees, seed), 0) for seed in range(2)]
    true = math.cos(math.radians(degrees))
    values = [each["value"] for each in corrected]
    assert sum(values) / len(values) == pytest.approx(true, abs=0.015)
    assert values == [pytest.approx(true, abs=0.02)] * 2
    assert all(each["low"] < each["value"] < each["high"] for each in corrected)
    assert all(each["low"] < true < each["high"] for each in corrected)


def test_without_noise_it_is_the_cosine() -> None:
    harmful, harmless = torch.tensor([[3.0, 4.0]]).repeat(6, 1), torch.zeros(7, 2)
    turned = torch.tensor([[8.0, 6.0]]).repeat(6, 1)
    corrected = corrected_cosine((harmful, harmless), (turned, harmless), 0)
    assert [corrected[name] for name in ("value", "low", "high")] == [pytest.approx(48 / 50)] * 3
    assert (corrected["n_harmful"], corrected["n_harmless"], corrected["undefined"]) == (6, 7, 0)


def test_scale_and_mean_of_a_model_change_nothing() -> None:
    original, compressed = rotated(20, 0)
    moved = 3 * compressed[0] + 100, 3 * compressed[1] + 100
    expected, corrected = (corrected_cosine(original, each, 0) for each in (compressed, moved))
    assert [corrected[name] for name in ("value", "low", "high")] == pytest.approx(
        [expected[name] for name in ("value", "low", "high")], abs=1e-9
    )


def test_shared_noise_is_not_taken_for_a_shared_direction() -> None:
    """Weak directions at a right angle: the noise of the same prompts makes the plain cosine, not the corrected one."""
    original, compressed = rotated(90, 0, distance=2.0)
    plain = cosine(*(harmful.mean(dim=0) - harmless.mean(dim=0) for harmful, harmless in (original, compressed)))
    assert plain > 0.25
    corrected = corrected_cosine(original, compressed, 0)
    assert abs(corrected["value"]) < 0.15 and corrected["low"] < 0 < corrected["high"]


def test_models_without_a_direction_have_no_corrected_cosine() -> None:
    halves = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    corrected = corrected_cosine((halves, halves), (halves, halves), 0)
    # The two halves of one model lie against each other.
    assert corrected["value"] is None
    assert corrected["undefined"] > 0.1 * RESAMPLES and (corrected["low"], corrected["high"]) == (-1, 1)


@pytest.mark.thorough
def test_it_is_drawn_by_its_seed() -> None:
    states = rotated(10, 0)
    assert corrected_cosine(*states, 0) == corrected_cosine(*states, 0)
    assert corrected_cosine(*states, 0)["low"] != corrected_cosine(*states, 1)["low"]


def test_a_gain_is_that_of_the_cosines_over_the_same_draws() -> None:
    original, turned = rotated(40, 0)
    _, nearer = rotated(20, 0)
    before, after = (corrected_cosine(original, states, 0) for states in (turned, nearer))
    gain = corrected_gain(original, turned, nearer, 0)
    assert gain["value"] == pytest.approx(after["value"] - before["value"])
    assert gain["value"] == pytest.approx(math.cos(math.radians(20)) - math.cos(math.radians(40)), abs=0.03)
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    # A draw that raises one cosine raises the other: the interval is narrower than that of two unrelated ones.
    widths = [each["high"] - each["low"] for each in (before, after, gain)]
    assert widths[2] < 0.9 * math.hypot(*widths[:2])
    assert corrected_gain(original, nearer, turned, 0)["high"] == pytest.approx(-gain["low"])


def test_without_a_direction_there_is_no_gain() -> None:
    halves = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    gain = corrected_gain((halves, halves), (halves, halves), (halves, halves), 0)
    assert gain["value"] is None
    assert gain["undefined"] > 0.1 * RESAMPLES and (gain["low"], gain["high"]) == (-2, 2)

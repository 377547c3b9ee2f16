"""COSMIC's scores against a plain float64 computation of their definition, and its choice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_candidate_scores import ablated_by_hand

from aird.directions import cosmic
from aird.directions.activation_cache import ActivationCache, Group
from aird.directions.activations import capture
from aird.directions.comparison import cosine
from aird.directions.cosmic import ablation_divergences, compared_layers, cosmic_direction, score_by_cosine
from aird.settings.directions import Directions

REFUSAL_TOKENS = [40, 318, 7]
LAYERS, POSITIONS = 4, 5
SETTINGS = Directions(harmful="harmful", harmless="harmless")


@pytest.fixture
def cache(model: Any, prompts: list[list[int]]) -> Any:
    """Return a cache in which two or three prompts stand for a class; random weights do not know which."""
    groups = {}
    for kind, chosen in (("harmful", (0, 2, 4)), ("harmless", (1, 3))):
        states, scores = capture(model, [prompts[index] for index in chosen], POSITIONS, REFUSAL_TOKENS)
        groups[kind, "train"] = Group(states, torch.zeros_like(scores), tuple(map(str, chosen)))
    return ActivationCache.of(groups)


@pytest.fixture
def candidates(cache: Any) -> torch.Tensor:
    return cache.candidates


class Plain:
    """The definition, one prompt and one candidate at a time, in float64, over whole forward passes."""

    def __init__(self, model: Any, layers: list[int]) -> None:
        self.model, self.layers = model.double(), layers

    @torch.no_grad()
    def mean_state(self, prompts: list[list[int]]) -> torch.Tensor:
        total = torch.zeros(128, dtype=torch.float64)
        for prompt in prompts:
            states: dict[int, torch.Tensor] = {}

            def keep(module: Any, _: Any, output: Any, states: dict[int, torch.Tensor] = states) -> None:
                states[module.layer_index] = (output[0] if isinstance(output, tuple) else output)[0, -1]

            handles = []
            for index, block in enumerate(self.model.model.layers):
                # The input of a block is the output of the one below.
                block.layer_index = index + 1
                handles.append(block.register_forward_hook(keep))
            self.model(input_ids=torch.tensor([prompt]))
            for handle in handles:
                handle.remove()
            total += sum(states[layer] for layer in self.layers)
        return total / (len(prompts) * len(self.layers))

    def added(self, prompts: list[list[int]], layer: int, vector: torch.Tensor) -> torch.Tensor:
        block = self.model.model.layers[layer]
        handle = block.register_forward_pre_hook(lambda _, args: (args[0] + vector, *args[1:]))
        state = self.mean_state(prompts)
        handle.remove()
        return state

    def ablated(self, prompts: list[list[int]], vector: torch.Tensor) -> torch.Tensor:
        with ablated_by_hand(self.model, vector):
            return self.mean_state(prompts)


@pytest.mark.parametrize("layers", [[2, 3], [1], [3]])
def test_every_score_equals_a_direct_computation(
    model: Any, prompts: list[list[int]], candidates: torch.Tensor, layers: list[int], monkeypatch: Any
) -> None:
    monkeypatch.setattr(cosmic, "ABLATED_SHARE", 1.0)
    harmful, harmless = [prompts[index] for index in (0, 2, 4)], [prompts[1], prompts[3]]
    scored = score_by_cosine(model, candidates, harmful, harmless, layers, 0.8)
    plain = Plain(model, layers)
    states = plain.mean_state(harmful), plain.mean_state(harmless)
    assert scored["baseline"] == pytest.approx(cosine(*states), abs=1e-5)
    # int(0.8 x 4) layers; at layer 0 a template token has the same state in every prompt.
    sites = [(l, p) for l in range(3) for p in range(POSITIONS) if candidates[l, p].any()]  # noqa: E741
    assert scored["candidates"] == len(scored["scores"]) == len(sites) >= 2 * POSITIONS
    for score in scored["scores"]:
        vector = candidates[score["layer"], score["position"]]
        added = cosine(plain.added(harmless, score["layer"], vector), states[0])
        ablated = cosine(plain.ablated(harmful, vector), states[1])
        assert score["addition"] == pytest.approx(added, abs=1e-5)
        assert score["ablation"] == pytest.approx(ablated, abs=1e-5)
        assert score["score"] == score["addition"] + score["ablation"]
    # The candidates differ by far more than the tolerance.
    values = [score["score"] for score in scored["scores"]]
    assert max(values) - min(values) > 1e-3


def test_the_quarter_with_the_highest_additions_is_ablated(
    model: Any, prompts: list[list[int]], candidates: torch.Tensor, monkeypatch: Any
) -> None:
    additions = {}
    for share in (0.25, 1.0):
        monkeypatch.setattr(cosmic, "ABLATED_SHARE", share)
        scores = score_by_cosine(model, candidates, prompts[:2], prompts[2:4], [2, 3], 0.8)["scores"]
        additions[share] = sorted((score["addition"] for score in scores), reverse=True)
    assert len(additions[0.25]) == max(4, -(-len(additions[1.0]) // 4))
    assert additions[0.25] == pytest.approx(additions[1.0][: len(additions[0.25])])


def test_divergences_equal_those_of_single_directions(
    model: Any, prompts: list[list[int]], candidates: torch.Tensor
) -> None:
    units = candidates[2] / candidates[2].norm(dim=-1, keepdim=True)
    together = ablation_divergences(model, units, prompts)
    alone = [ablation_divergences(model, unit[None], prompts)[0] for unit in units]
    assert together == pytest.approx(alone, rel=1e-3)
    assert min(together) > 0


def test_compared_layers_are_those_of_lowest_cosine() -> None:
    harmful = torch.zeros(3, 20, 2)
    harmful[:, :, 0] = 1.0
    harmless = harmful.clone()
    harmless[:, 0] = torch.tensor([0.0, 1.0])  # layer 0 is left out
    harmless[:, 13] = torch.tensor([0.0, 1.0])
    harmless[:, 7] = torch.tensor([1.0, 1.0])
    harmless[:, 3] = torch.tensor([1.0, 0.1])
    assert compared_layers(harmful, harmless) == [7, 13]  # int(0.1 x 20)
    assert compared_layers(harmful[:, :8], harmless[:, :8]) == [7]  # at least one


def test_the_choice_is_the_best_within_the_kl_limit(model: Any, cache: Any, prompts: list[list[int]]) -> None:
    harmful, harmless = [prompts[0], prompts[2]], [prompts[1], prompts[3]]
    free = cosmic_direction(model, cache, harmful, harmless, SETTINGS.model_copy(update={"maximum_kl": 1000.0}))
    assert free["rule"] == "cosmic"
    assert free["score"] == max(score["score"] for score in free["shortlist"])
    assert (free["layer"], free["position"]) == (free["shortlist"][0]["layer"], free["shortlist"][0]["position"])
    tight = cosmic_direction(model, cache, harmful, harmless, SETTINGS.model_copy(update={"maximum_kl": 1e-9}))
    least = min(score["kl"] for score in tight["shortlist"])
    assert tight["rule"] == "cosmic_relaxed_kl"
    assert least <= tight["kl"] <= tight["kl_limit"] <= 2 * least


def test_a_broken_model_is_an_error(llama: Any, prompts: list[list[int]]) -> None:
    ones = torch.rand(2, LAYERS, POSITIONS, 128, generator=torch.Generator().manual_seed(0))
    groups = {
        (kind, "train"): Group(states, torch.zeros(2, dtype=torch.float64), ("a", "b"))
        for kind, states in (("harmful", ones), ("harmless", -ones))
    }
    llama.model.layers[0].mlp.down_proj.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="broken"):
        cosmic_direction(llama, ActivationCache.of(groups), prompts[:2], prompts[2:4], SETTINGS)

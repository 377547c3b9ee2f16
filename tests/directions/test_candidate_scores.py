"""Every score of every candidate, against a plain float64 computation of its definition."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from models.families import tiny_family

from aird.directions.activations import capture
from aird.directions.candidate_scores import score_candidates
from aird.directions.candidates import difference_in_means
from aird.directions.score_records import mean_scores
from aird.inference.resuming import resumed_at
from aird.settings.directions import Directions

REFUSAL_TOKENS = [40, 318, 7]
LAYERS, POSITIONS = 4, 5


def directions(minimum_induce: float, layer_fraction: float = 0.8) -> Directions:
    return Directions(
        harmful="harmful", harmless="harmless", minimum_induce=minimum_induce, layer_fraction=layer_fraction
    )


@contextlib.contextmanager
def ablated_by_hand(model: Any, vector: torch.Tensor) -> Iterator[None]:
    """Take the component along a vector out of every block's input and out of what every writer puts out."""
    unit = vector / vector.norm()
    keep = torch.eye(len(unit), dtype=torch.float64) - torch.outer(unit, unit)
    handles = []
    for block in model.model.layers:
        handles.append(block.register_forward_pre_hook(lambda _, args: (args[0] @ keep, *args[1:])))
        for writer in (block.self_attn.o_proj, block.mlp.down_proj):
            handles.append(writer.register_forward_hook(lambda _, __, output: output @ keep))
    yield
    for handle in handles:
        handle.remove()


class Plain:
    """The definitions of section 2.3 and appendix C of arXiv 2406.11717, one prompt at a time, float64."""

    def __init__(self, model: Any) -> None:
        self.model = model.double()

    @torch.no_grad()
    def last_logits(self, prompt: list[int]) -> torch.Tensor:
        return self.model(input_ids=torch.tensor([prompt])).logits[0, -1]

    @staticmethod
    def refusal_score(logits: torch.Tensor) -> float:
        exponentials = logits.exp()
        probability = (sum(exponentials[token] for token in REFUSAL_TOKENS) / exponentials.sum()).item()
        return math.log(probability + 1e-8) - math.log(1 - probability + 1e-8)

    def induce(self, prompts: list[list[int]], layer: int, vector: torch.Tensor) -> list[float]:
        block = self.model.model.layers[layer]
        handle = block.register_forward_pre_hook(lambda _, args: (args[0] + vector, *args[1:]))
        scores = [self.refusal_score(self.last_logits(prompt)) for prompt in prompts]
        handle.remove()
        return scores

    def ablated_logits(self, prompts: list[list[int]], vector: torch.Tensor) -> list[torch.Tensor]:
        with ablated_by_hand(self.model, vector):
            return [self.last_logits(prompt) for prompt in prompts]

    def kl(self, prompts: list[list[int]], vector: torch.Tensor) -> list[float]:
        divergences = []
        for prompt, ablated in zip(prompts, self.ablated_logits(prompts, vector), strict=True):
            p = self.last_logits(prompt).softmax(-1)
            q = ablated.softmax(-1)
            divergences.append((p * (p / q).log()).sum().item())
        return divergences

    def bypass(self, prompts: list[list[int]], vector: torch.Tensor) -> list[float]:
        return [self.refusal_score(logits) for logits in self.ablated_logits(prompts, vector)]


@pytest.fixture
def classes(tokenizer: Any, prompts: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Return (harmful, harmless) prompts; random weights do not know which is which."""
    return [prompts[0], prompts[2], prompts[4]], [prompts[1], prompts[3]]


@pytest.fixture
def candidates(model: Any, classes: tuple[list[list[int]], list[list[int]]]) -> torch.Tensor:
    """Return real differences in means, [L, P, d_model]."""
    harmful, harmless = (capture(model, each, POSITIONS, REFUSAL_TOKENS)[0] for each in classes)
    return difference_in_means(harmful, harmless)


def test_every_score_equals_a_direct_computation_in_float64(
    model: Any, classes: tuple[list[list[int]], list[list[int]]], candidates: torch.Tensor
) -> None:
    harmful, harmless = classes
    everything = directions(-1000.0, layer_fraction=1.0)
    scores = score_candidates(model.double(), candidates, harmful, harmless, REFUSAL_TOKENS, everything)
    plain = Plain(model)
    compared = 0
    for layer in range(LAYERS):
        for position in range(POSITIONS):
            vector = candidates[layer, position]
            at_site = {name: values[layer, position] for name, values in scores.items()}
            # At layer 0 a template token has the same state in every prompt.
            if not vector.any():
                assert all(values.isnan().all() for values in at_site.values())
                continue
            assert at_site["induce"].tolist() == pytest.approx(plain.induce(harmless, layer, vector), abs=1e-9)
            assert at_site["kl"].tolist() == pytest.approx(plain.kl(harmless, vector), abs=1e-9)
            assert at_site["bypass"].tolist() == pytest.approx(plain.bypass(harmful, vector), abs=1e-9)
            compared += 1
    assert compared >= 3 * POSITIONS
    # The candidates differ by far more than the tolerance, or swapped records would go unseen.
    records = [record for record in mean_scores(scores) if record["layer"] > 0]
    for name in ("induce", "bypass"):
        values = sorted(record[name] for record in records)
        assert min(after - before for before, after in pairwise(values)) > 1e-6
    assert max(record["kl"] for record in records) > 0.05


def test_blocks_that_return_a_tuple_are_skipped_as_such() -> None:
    """Bamba's, on a model that nothing has looked at before."""
    model = tiny_family("bamba", attn_layer_indices=[1, 3], vocab_size=400)
    harmful, harmless = ([[5, 6, 7 + kind, 9 + 3 * number, 11] for number in range(2)] for kind in range(2))
    candidates = difference_in_means(*(capture(model, each, 2, [40])[0] for each in (harmful, harmless)))
    scores = score_candidates(model, candidates, harmful, harmless, REFUSAL_TOKENS, directions(-1000.0, 1.0))
    plain = Plain(model)
    for layer in range(1, LAYERS):
        expected = plain.induce(harmless, layer, candidates[layer, 1])
        assert scores["induce"][layer, 1].tolist() == pytest.approx(expected, abs=1e-3)


def test_a_record_is_a_candidates_mean_over_its_prompts() -> None:
    induce = torch.tensor([[[1.0, 3.0], [2.0, torch.nan]]], dtype=torch.float64)
    bypass = torch.tensor([[[1.0, 2.0, 6.0], [torch.nan] * 3]], dtype=torch.float64)
    known, unknown = mean_scores({"induce": induce, "kl": induce / 4, "bypass": bypass})
    assert known == {"layer": 0, "position": -2, "induce": 2.0, "kl": 0.5, "bypass": 3.0}
    assert (unknown["layer"], unknown["position"]) == (0, -1)
    assert all(math.isnan(unknown[name]) for name in ("induce", "kl", "bypass"))


def test_scores_are_no_numbers_where_filters_drop_the_candidate(
    model: Any, classes: tuple[list[list[int]], list[list[int]]], candidates: torch.Tensor
) -> None:
    harmful, harmless = classes

    def scored(limit: float) -> list[dict[str, Any]]:
        return mean_scores(
            score_candidates(model, candidates, harmful, harmless, REFUSAL_TOKENS, directions(limit, 0.5))
        )

    full = scored(-1000.0)
    limit = sorted(record["induce"] for record in full if record["layer"] == 1)[2]
    needed = scored(limit)
    dropped = complete = 0
    for record, expected in zip(needed, full, strict=True):
        assert record["induce"] == pytest.approx(expected["induce"], abs=0, nan_ok=True)
        if record["layer"] >= 2 or math.isnan(expected["induce"]):  # int(0.5 x 4)
            assert all(math.isnan(record[name]) for name in ("induce", "kl", "bypass"))
        elif expected["induce"] < limit:
            assert math.isnan(record["kl"]) and math.isnan(record["bypass"])
            dropped += 1
        else:
            assert (record["kl"], record["bypass"]) == (expected["kl"], expected["bypass"])
            complete += 1
    assert dropped >= 2
    assert complete >= 2


def test_a_site_without_a_difference_has_no_direction(
    llama: Any, classes: tuple[list[list[int]], list[list[int]]]
) -> None:
    candidates = torch.zeros(LAYERS, 2, 128, dtype=torch.float64)
    candidates[1, 0, 0] = 1.0
    records = mean_scores(score_candidates(llama, candidates, *classes, REFUSAL_TOKENS, directions(-1000.0)))
    scored = {(record["layer"], record["position"]) for record in records if not math.isnan(record["induce"])}
    assert scored == {(1, -2)}


def test_a_tenth_is_scored_in_full_where_none_reaches_the_minimum(
    model: Any, classes: tuple[list[list[int]], list[list[int]]], candidates: torch.Tensor
) -> None:
    records = mean_scores(score_candidates(model, candidates, *classes, REFUSAL_TOKENS, directions(1000.0)))
    known = sorted((record["induce"] for record in records if not math.isnan(record["induce"])), reverse=True)
    full = [record["induce"] for record in records if not math.isnan(record["bypass"])]
    assert 0 < len(full) == math.ceil(len(known) / 10)
    assert sorted(full, reverse=True) == known[: len(full)]


def test_a_broken_model_is_an_error(llama: Any, classes: tuple[list[list[int]], list[list[int]]]) -> None:
    llama.model.norm.weight.data.fill_(torch.nan)
    some = torch.ones(LAYERS, 1, 128, dtype=torch.float64)
    with pytest.raises(ValueError, match="broken"):
        score_candidates(llama, some, *classes, REFUSAL_TOKENS, directions(-1000.0))


def test_the_model_is_left_as_it_was(
    model: Any, classes: tuple[list[list[int]], list[list[int]]], candidates: torch.Tensor
) -> None:
    before = model(input_ids=torch.tensor([classes[0][0]])).logits
    score_candidates(model, candidates, *classes, REFUSAL_TOKENS, directions(-1000.0))
    assert_untouched(model)
    assert torch.equal(model(input_ids=torch.tensor([classes[0][0]])).logits, before)


def assert_untouched(model: Any) -> None:
    for module in model.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def block_input(model: Any, prompt: list[int], layer: int) -> torch.Tensor:
    # Not by output_hidden_states, for which Transformers leaves hooks of its own behind.
    inputs: list[torch.Tensor] = []
    handle = model.model.layers[layer].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(input_ids=torch.tensor([prompt]))
    handle.remove()
    return inputs[0]


@torch.no_grad()
@pytest.mark.parametrize("layer", range(LAYERS))
def test_resumed_at_computes_from_the_given_states(model: Any, prompts: list[list[int]], layer: int) -> None:
    """The tokens given do not matter: the states of another prompt decide."""
    other = prompts[1]
    states = block_input(model, other, layer)
    expected = model(input_ids=torch.tensor([other])).logits
    blocks = list(model.model.layers)
    with resumed_at(blocks, layer, states):
        logits = model(input_ids=torch.full((1, len(other)), 7)).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert_untouched(model)


@torch.no_grad()
def test_resumed_at_skips_the_blocks_below(llama: Any, prompts: list[list[int]]) -> None:
    ran = []
    for index, block in enumerate(llama.model.layers):
        block.self_attn.register_forward_hook(lambda *_, index=index: ran.append(index))
    with resumed_at(list(llama.model.layers), 2, block_input(llama, prompts[0], 2)):
        ran.clear()
        llama(input_ids=torch.tensor([prompts[0]]))
    assert ran == [2, 3]
    ran.clear()
    llama(input_ids=torch.tensor([prompts[0]]))
    assert ran == [0, 1, 2, 3]


@torch.no_grad()
def test_resumed_at_restores_after_an_error_and_keeps_a_loaders_forward(llama: Any, prompts: list[list[int]]) -> None:
    blocks = list(llama.model.layers)
    original = blocks[0].forward

    def forward_of_a_loader(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    blocks[0].forward = forward_of_a_loader
    expected = llama(input_ids=torch.tensor([prompts[0]])).logits
    with pytest.raises(KeyError), resumed_at(blocks, 2, block_input(llama, prompts[0], 2)):
        raise KeyError
    assert blocks[0].__dict__["forward"] is forward_of_a_loader
    assert "forward" not in blocks[1].__dict__
    assert not blocks[2]._forward_pre_hooks
    assert torch.equal(llama(input_ids=torch.tensor([prompts[0]])).logits, expected)

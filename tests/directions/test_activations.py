"""Captured activations against the hidden states that Transformers itself returns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from grid import prompt_records

from aird.directions.activations import capture, capture_activations
from aird.settings.directions import Directions

REFUSAL_TOKENS = [40, 318]


@torch.no_grad()
def direct(model: Any, prompt: list[int], positions: int) -> tuple[torch.Tensor, float]:
    """Return hidden states [L, positions, d_model] and refusal score of one prompt, by a plain forward pass."""
    output = model(input_ids=torch.tensor([prompt]), output_hidden_states=True)
    layers = len(model.model.layers)
    assert len(output.hidden_states) == layers + 1
    states = torch.stack([output.hidden_states[layer][0, -positions:] for layer in range(layers)])
    exponentials = output.logits[0, -1].double().exp()
    probability = (exponentials[REFUSAL_TOKENS].sum() / exponentials.sum()).item()
    return states, math.log(probability + 1e-8) - math.log(1 - probability + 1e-8)


def assert_equal_to_direct(model: Any, prompts: list[list[int]], positions: int) -> None:
    activations, scores = capture(model, prompts, positions, REFUSAL_TOKENS)
    assert activations.shape == (len(prompts), 4, positions, 128)
    assert activations.dtype == torch.float32
    assert scores.dtype == torch.float64
    for index, prompt in enumerate(prompts):
        states, score = direct(model, prompt, positions)
        torch.testing.assert_close(activations[index], states, atol=2e-5, rtol=1e-5)
        assert scores[index].item() == pytest.approx(score, abs=1e-4)


def test_captured_states_are_the_block_inputs(model: Any, prompts: list[list[int]]) -> None:
    assert_equal_to_direct(model, prompts, positions=5)


def test_order_is_kept_over_several_packs(model: Any, prompts: list[list[int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    long = [
        prompt + torch.randint(3, 400, (150 + 60 * (index % 3),), generator=generator).tolist()
        for index, prompt in enumerate(prompts + prompts)
    ]
    assert sum(map(len, long)) > 2 * 1024
    assert_equal_to_direct(model, long, positions=3)


def test_a_prompt_that_begins_another_keeps_its_own_positions(model: Any) -> None:
    """The shared start must not swallow tokens whose activations are wanted."""
    prompts = [[1, 318, 201, 48], [1, 318, 201, 48, 67, 79], [1, 318, 201, 48]]
    assert_equal_to_direct(model, prompts, positions=3)


def test_one_prompt(model: Any, prompts: list[list[int]]) -> None:
    assert_equal_to_direct(model, prompts[:1], positions=5)


def test_a_broken_model_raises(llama: Any, prompts: list[list[int]]) -> None:
    llama.model.layers[1].mlp.down_proj.weight.data[3, 4] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        capture(llama, prompts, 5, REFUSAL_TOKENS)


def test_no_hook_is_left(llama: Any, prompts: list[list[int]]) -> None:
    capture(llama, prompts, 5, REFUSAL_TOKENS)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in llama.modules())


def test_the_node_captures_the_drawn_prompts_of_each_class_and_split(llama: Any, tokenizer: Any) -> None:
    records = prompt_records(train=9, validation=9, test=9)
    settings = Directions(harmful="harmful", harmless="harmless", train=8, validation=2)
    cache = capture_activations(llama, tokenizer, records, REFUSAL_TOKENS, settings, 1)
    assert {key: len(group.ids) for key, group in cache.groups.items()} == {
        (kind, split): size for kind in records for split, size in (("train", 8), ("validation", 2))
    }
    harmful, harmless = cache.kept_activations("train")
    expected = harmful.double().mean(dim=0) - harmless.double().mean(dim=0)
    assert cache.candidates.dtype == torch.float64 and torch.equal(cache.candidates, expected)
    with pytest.raises(ValueError, match="prompt set harmful, split train: 10 records asked for, but it has 9"):
        more = settings.model_copy(update={"train": 10})
        capture_activations(llama, tokenizer, records, REFUSAL_TOKENS, more, 1)

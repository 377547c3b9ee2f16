"""Captured activations against the hidden states that Transformers itself returns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from grid import prompt_records

from aird.directions.activation_cache import kept_tokens
from aird.directions.activations import capture, capture_activations
from aird.directions.search import search_direction
from aird.prompts.chat import chat_tokens, post_instruction_tokens
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
    tokens = {"tokens": REFUSAL_TOKENS}
    cache = capture_activations(llama, tokenizer, records, tokens, settings, 1)
    assert {key: len(group.ids) for key, group in cache.groups.items()} == {
        (kind, split): size for kind in records for split, size in (("train", 8), ("validation", 2))
    }
    harmful, harmless = cache.kept_activations("train")
    expected = harmful.double().mean(dim=0) - harmless.double().mean(dim=0)
    assert cache.candidates.dtype == torch.float64 and torch.equal(cache.candidates, expected)
    with pytest.raises(ValueError, match="prompt set harmful, split train: 10 records asked for, but it has 9"):
        more = settings.model_copy(update={"train": 10})
        capture_activations(llama, tokenizer, records, tokens, more, 1)


def test_a_search_scores_prompts_with_the_lead_of_all_replies_behind_them(llama: Any, tokenizer: Any) -> None:
    records = prompt_records(train=9, validation=9)
    settings = Directions(harmful="harmful", harmless="harmless", train=8, validation=8, minimum_induce=-1000.0)
    lead = [33, 44]
    search = search_direction(llama, tokenizer, records, settings, 1, {"tokens": REFUSAL_TOKENS, "lead": lead})
    positions = len(post_instruction_tokens(tokenizer)) + len(lead)
    texts = {record["id"]: record["instruction"] for record in records["harmful"]}
    group = search.cache.groups["harmful", "validation"]
    assert group.activations.shape[2] == search.cache.candidates.shape[1] == positions
    for index, name in enumerate(group.ids[:2]):
        states, score = direct(llama, chat_tokens(tokenizer, texts[name]) + lead, positions)
        torch.testing.assert_close(group.activations[index], states, atol=2e-5, rtol=1e-5)
        assert group.scores[index].item() == pytest.approx(score, abs=1e-4)
    # What candidates are scored on, and COSMIC.
    for kept in kept_tokens(search.cache, "validation", tokenizer, records):
        assert kept and all(tokens[-2:] == lead for tokens in kept)
    assert min(score["position"] for score in search.scores) == -positions

"""Attention prompt by prompt: the same states in less time, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from aird.packing import Pack, last_logits, make_packs, run_pack
from aird.segmented_attention import segmented_attention


def masked_logits(model: Any, pack: Pack, rows: int = 1) -> torch.Tensor:
    """The pack with its mask alone."""
    return model(**pack.model_inputs(model, rows), logits_to_keep=pack.ends).logits


@torch.no_grad()
@pytest.mark.parametrize("own_tokens", [1, 10**6])
def test_a_pack_gets_the_logits_of_its_mask(model: Any, prompts: list[list[int]], own_tokens: int) -> None:
    """With a shared prefix, and (as many own tokens are asked for) without one."""
    model.double()
    (pack,) = make_packs(prompts, 10**6, own_tokens)
    assert (pack.prefix_length > 0) == (own_tokens == 1)
    torch.testing.assert_close(last_logits(model, pack, rows=2), masked_logits(model, pack, rows=2), atol=1e-10, rtol=0)


@torch.no_grad()
def test_prompts_are_computed_apart(llama: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = []
    plain = nn.functional.scaled_dot_product_attention

    def count(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        pairs.append(query.shape[-2] * key.shape[-2])
        return plain(query, key, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", count)
    (pack,) = make_packs(prompts, 10**6)
    last_logits(llama, pack)
    prefix = pack.prefix_length
    own = [len(prompt) - prefix for prompt in prompts]
    layers = llama.config.num_hidden_layers
    assert sum(pairs) == layers * (prefix**2 + sum(length * (prefix + length) for length in own))
    assert sum(pairs) < layers * len(pack.token_ids) ** 2 / 2


@torch.no_grad()
def test_the_attention_function_is_put_back(llama: Any, prompts: list[list[int]]) -> None:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    (pack,) = make_packs(prompts, 10**6)
    run_pack(llama, pack)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    with pytest.raises(KeyError), segmented_attention(llama, pack.prefix_length, pack.ends.tolist()):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
        raise KeyError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


@torch.no_grad()
def test_other_passes_and_other_attentions_are_left_alone(llama: Any, prompts: list[list[int]]) -> None:
    (pack,) = make_packs(prompts, 10**6)
    alone = torch.tensor([prompts[0]])
    expected = llama(input_ids=alone).logits
    with segmented_attention(llama, pack.prefix_length, pack.ends.tolist()):
        assert torch.equal(llama(input_ids=alone).logits, expected)
    packed = last_logits(llama, pack)
    llama.set_attn_implementation("eager")
    torch.testing.assert_close(last_logits(llama, pack), packed, atol=1e-4, rtol=0)

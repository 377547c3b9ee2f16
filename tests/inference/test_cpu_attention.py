"""Attention prompt by prompt and of new tokens: the same states and gradients in less time, in any thread."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

import aird.inference.cpu_attention
from aird.inference.cpu_attention import (
    LEAST_FILLED,
    NAME,
    _attention,
    decoding_attention,
    grouped_attention,
    segmented_attention,
)
from aird.inference.packing import Pack, last_logits, make_packs, run_pack


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


def test_a_pack_gets_the_gradients_of_its_mask(model: Any, prompts: list[list[int]]) -> None:
    model.double()
    (pack,) = make_packs(prompts, 10**6)
    # An input of the second block on, so that gradients pass through attention.
    weight = model.model.layers[0].mlp.down_proj.weight.requires_grad_()
    gradient, expected = (
        torch.autograd.grad(logits.square().mean(), weight)[0]
        for logits in (run_pack(model, pack, logits_to_keep=pack.ends), masked_logits(model, pack))
    )
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-9)


@torch.no_grad()
def test_prompts_are_computed_apart(llama: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = []

    def count(query: torch.Tensor, key: torch.Tensor, *rest: Any) -> torch.Tensor:
        pairs.append(len(query) * query.shape[2] * key.shape[2])
        return grouped_attention(query, key, *rest)

    monkeypatch.setattr(aird.inference.cpu_attention, "grouped_attention", count)
    (pack,) = make_packs(prompts, 10**6)
    last_logits(llama, pack)
    prefix = pack.prefix_length
    own = [len(prompt) - prefix for prompt in prompts]
    layers = llama.config.num_hidden_layers
    needed = prefix**2 + sum(length * (prefix + length) for length in own)
    # Padding to the longest of a group costs no more than the square of the share that is filled.
    assert layers * needed <= sum(pairs) <= layers * needed / LEAST_FILLED**2
    assert sum(pairs) < layers * len(pack.token_ids) ** 2 / 2


@pytest.mark.parametrize("mask", ["none", "boolean", "additive"])
@pytest.mark.parametrize("queries", [1, 5])
def test_grouped_attention_is_attention(mask: str, queries: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, heads, tokens, width, generator=generator, dtype=torch.float64)
        for heads, tokens, width in ((6, queries, 8), (2, 7, 8), (2, 7, 4))
    )
    seen = torch.rand(3, 1, queries, 7, generator=generator) > 0.4
    seen[..., 0] = True
    given = {
        "none": None,
        "boolean": seen,
        "additive": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min),
    }[mask]
    expected = nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(3, 1),
        value.repeat_interleave(3, 1),
        attn_mask=None if given is None else seen,
        scale=0.3,
    )
    torch.testing.assert_close(grouped_attention(query, key, value, given, 0.3), expected)


@torch.no_grad()
def test_new_tokens_get_the_logits_of_the_whole_row(model: Any, prompts: list[list[int]]) -> None:
    model.double()
    rows = torch.tensor([prompts[0][:9], prompts[1][:9]])
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, :2] = 0
    expected = model(input_ids=rows, attention_mask=mask).logits[:, -1]
    cache = model(input_ids=rows[:, :-1], attention_mask=mask[:, :-1], use_cache=True).past_key_values
    with decoding_attention(model):
        logits = model(input_ids=rows[:, -1:], attention_mask=mask, past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)


def test_what_it_cannot_compute_goes_to_the_plain_attention(
    llama: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias of the positions, a cap or a sink, dropout, a mask for each head; all outside of packs and new tokens."""
    seen = []
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", lambda *_, **more: (seen.append(more), None))
    (pack,) = make_packs(prompts, 10**6)
    tokens = len(pack.token_ids)
    packed, new = ([torch.zeros(1, 2, count, 4)] * 3 for count in (tokens, 1))
    one, each = torch.zeros(1, 1, tokens, tokens), torch.zeros(1, 2, tokens, tokens)
    others = [{"position_bias": torch.zeros(1)}, {"softcap": 50.0}, {"s_aux": torch.zeros(2)}, {"dropout": 0.1}]
    nothing = {"position_bias": None, "softcap": None, "s_aux": None, "dropout": 0.0}
    with segmented_attention(llama, pack.prefix_length, pack.ends.tolist()):
        _attention(None, *packed, one, **nothing)
        assert not seen
        for more in others:
            _attention(None, *packed, one, **more)
        _attention(None, *packed, each)
    with decoding_attention(llama):
        _attention(None, *new, None, **nothing)
        assert len(seen) == 5
        for more in others:
            _attention(None, *new, None, **more)
        _attention(None, *new, each[:, :, :1, :1])
    assert len(seen) == 10
    _attention(None, *packed, one)
    assert len(seen) == 11


@torch.no_grad()
def test_a_pass_behind_a_pack_is_plain_also_after_an_error(llama: Any, prompts: list[list[int]]) -> None:
    """Its masks are made as before, too: of a padded batch, of whole rows."""
    rows, mask = torch.tensor([prompts[0][:9], prompts[1][:9]]), torch.ones(2, 9, dtype=torch.int64)
    mask[1, :2] = 0
    expected = [llama(input_ids=rows, attention_mask=mask).logits, llama(input_ids=rows).logits]
    plain = AttentionInterface()["sdpa"]
    (pack,) = make_packs(prompts, 10**6)
    run_pack(llama, pack)
    with pytest.raises(KeyError), segmented_attention(llama, pack.prefix_length, pack.ends.tolist()):
        assert AttentionInterface()["sdpa"] is plain
        raise KeyError
    assert llama.config._attn_implementation == NAME
    assert torch.equal(llama(input_ids=rows, attention_mask=mask).logits, expected[0])
    assert torch.equal(llama(input_ids=rows).logits, expected[1])


@torch.no_grad()
def test_packs_in_two_threads_at_once(llama: Any, prompts: list[list[int]]) -> None:
    """Each attends by its own layout, while the other is at work."""
    packs = make_packs(prompts[:3], 10**6) + make_packs(prompts[2:], 10**6)
    expected = [last_logits(llama, pack) for pack in packs]
    assert not torch.equal(expected[0], expected[1])
    meeting = threading.Barrier(2, timeout=60)
    for layer in llama.model.layers:
        layer.register_forward_pre_hook(lambda *_: (meeting.wait(), None)[1])
    with ThreadPoolExecutor(2) as threads, torch.no_grad():
        together = list(threads.map(lambda pack: last_logits(llama, pack), packs))
    for logits, wanted in zip(together, expected, strict=True):
        assert torch.equal(logits, wanted)


@torch.no_grad()
def test_a_checkpoint_does_not_store_the_name(llama: Any, prompts: list[list[int]], tmp_path: Path) -> None:
    run_pack(llama, make_packs(prompts, 10**6)[0])
    assert llama.config._attn_implementation == NAME
    llama.save_pretrained(tmp_path)
    assert all(NAME.encode() not in path.read_bytes() for path in tmp_path.iterdir())
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@torch.no_grad()
def test_a_model_whose_code_compares_names_keeps_its_own(prompts: list[list[int]]) -> None:
    """Falcon runs eager attention under any name but "sdpa"; sparse attention (DeepSeek V3.2) would lose its mask."""
    config = AutoConfig.for_model("falcon", vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    falcon = AutoModelForCausalLM.from_config(config).eval()
    run_pack(falcon, make_packs(prompts, 10**6)[0])
    assert falcon.config._attn_implementation == "sdpa"


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
    assert llama.config._attn_implementation == "eager"

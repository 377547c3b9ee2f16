"""Packed prompts must give what each prompt gives alone."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tiny_model import SMALL, random_model
from torch import nn

from aird.inference.packing import PACK_TOKENS, honours_packs, last_logits, make_packs, plan_packs, run_packed


@torch.no_grad()
def logits_alone(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    """Return the last logits of each prompt, one plain forward pass each, [prompts, vocabulary]."""
    return torch.stack([model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in prompts])


def logits_packed(model: Any, packs: Any, count: int) -> torch.Tensor:
    logits = torch.full((count, model.config.vocab_size), torch.nan)
    for pack in packs:
        logits[list(pack.prompts)] = last_logits(model, pack)[0]
    return logits


class WithoutMask(nn.Module):
    """A model that, like a state space model, lets every token see all before it in the row."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.dtype = model.dtype
        self.config = model.config
        self.masks = 0

    def forward(self, attention_mask: torch.Tensor | None = None, **inputs: Any) -> Any:
        self.masks += attention_mask is not None
        return self.model(**inputs)


class TwoDimensionalMask(WithoutMask):
    """A model that cannot use a mask of four dimensions."""

    def forward(self, attention_mask: torch.Tensor | None = None, **inputs: Any) -> Any:
        if attention_mask is not None:
            raise ValueError("attention_mask must have two dimensions")
        return self.model(**inputs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_logits_equal_those_alone(model: Any, prompts: list[list[int]], attention: str) -> None:
    model.set_attn_implementation(attention)
    packs = plan_packs(model, prompts)
    assert len(packs) == 1
    torch.testing.assert_close(
        logits_packed(model, packs, len(prompts)), logits_alone(model, prompts), atol=2e-5, rtol=0
    )


def test_rows_are_identical(model: Any, prompts: list[list[int]]) -> None:
    (pack,) = make_packs(prompts, 1000)
    logits = last_logits(model, pack, rows=3)
    assert logits.shape == (3, 5, model.config.vocab_size)
    alone = logits_alone(model, prompts)
    for row in logits:
        torch.testing.assert_close(row, alone, atol=2e-5, rtol=0)


def test_prompts_that_are_prefixes_of_one_another(model: Any) -> None:
    prompts = [[1, 318, 201], [1, 318], [1, 318, 201, 48, 67], [1, 318, 201]]
    (pack,) = make_packs(prompts, 1000)
    # One shared token; what is left of the four prompts is 2, 1, 4 and 2 tokens.
    assert pack.token_ids.tolist() == [1, 318, 201, 318, 318, 201, 48, 67, 318, 201]
    assert pack.position_ids.tolist() == [0, 1, 2, 1, 1, 2, 3, 4, 1, 2]
    assert pack.ends.tolist() == [2, 3, 7, 9]
    torch.testing.assert_close(last_logits(model, pack)[0], logits_alone(model, prompts), atol=2e-5, rtol=0)


def test_visible_by_hand() -> None:
    (pack,) = make_packs([[7, 1, 2], [7, 3]], 1000)
    assert pack.visible is not None
    assert pack.visible.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]


def test_shared_tail_stays_with_each_prompt(model: Any) -> None:
    prompts = [[1, 318, 201], [1, 318, 201, 48, 67]]
    (pack,) = make_packs(prompts, 1000, own_tokens=2)
    assert pack.token_ids.tolist() == [1, 318, 201, 318, 201, 48, 67]
    torch.testing.assert_close(last_logits(model, pack)[0], logits_alone(model, prompts), atol=2e-5, rtol=0)


def test_packs_close_before_they_grow_too_long() -> None:
    prompts = [[9, 9, 1, 2, 3], [9, 9, 4, 5], [9, 9, 6], [9, 9, 7, 8, 1, 2]]
    packs = make_packs(prompts, 7)
    assert [pack.prompts for pack in packs] == [(0, 1), (2, 3)]
    assert [len(pack.token_ids) for pack in packs] == [7, 7]
    # A prompt that is longer by itself still gets its pack.
    packs = make_packs(prompts, 5)
    assert [pack.prompts for pack in packs] == [(0,), (1, 2), (3,)]
    assert [len(pack.token_ids) for pack in packs] == [5, 5, 6]


def test_several_packs_keep_every_prompt_in_its_place(model: Any, prompts: list[list[int]]) -> None:
    packs = make_packs(prompts, 50)
    assert 1 < len(packs) < len(prompts)
    torch.testing.assert_close(
        logits_packed(model, packs, len(prompts)), logits_alone(model, prompts), atol=2e-5, rtol=0
    )


def test_a_pack_per_prompt_is_the_plain_prompt(model: Any, prompts: list[list[int]]) -> None:
    packs = make_packs(prompts, 1)
    assert [pack.token_ids.tolist() for pack in packs] == prompts
    assert [pack.position_ids.tolist() for pack in packs] == [list(range(len(prompt))) for prompt in prompts]
    assert all(pack.visible is None for pack in packs)
    assert all("attention_mask" not in pack.model_inputs(model) for pack in packs)
    torch.testing.assert_close(logits_packed(model, packs, 5), logits_alone(model, prompts), atol=2e-5, rtol=0)


@pytest.mark.parametrize("wrapper", [WithoutMask, TwoDimensionalMask])
def test_a_model_that_ignores_the_mask_gets_one_prompt_a_pack(
    wrapper: type[WithoutMask], model: Any, prompts: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    wrapped = wrapper(model)
    with caplog.at_level(logging.WARNING):
        packs = plan_packs(wrapped, prompts)
    assert [pack.prompts for pack in packs] == [(0,), (1,), (2,), (3,), (4,)]
    assert "one by one" in caplog.text
    torch.testing.assert_close(logits_packed(wrapped, packs, 5), logits_alone(model, prompts), atol=2e-5, rtol=0)
    if wrapper is WithoutMask:
        plan_packs(wrapped, prompts[:3])
        assert wrapped.masks == 2  # it was offered with the longest and with the shortest prompts, and dropped


def test_a_mask_that_is_dropped_gives_other_logits(model: Any, prompts: list[list[int]]) -> None:
    """Otherwise the tests above would pass without any mask."""
    (pack,) = make_packs(prompts, 1000)
    assert (last_logits(WithoutMask(model), pack)[0] - logits_alone(model, prompts)).abs().max() > 0.5


def test_bfloat16_model_is_packed(llama: Any, prompts: list[list[int]]) -> None:
    assert len(plan_packs(llama.to(torch.bfloat16), prompts)) == 1


# One model for each kind of layer: own settings, and the lengths of prompts for which packs hold.
LAYERS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    # A window of every layer, or of three in four.
    "mistral": ({"sliding_window": 16, "head_dim": 8}, True, False),
    "gemma3_text": (
        {"sliding_window": 16, "head_dim": 8, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
        True,
        False,
    ),
    # Chunks of the row, whose mask is the model's own.
    "llama4_text": (
        {"attention_chunk_size": 16, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 64}
        | {"moe_layers": [], "no_rope_layers": [1, 1, 1, 1], "layer_types": ["chunked_attention"] * 4},
        True,
        False,
    ),
    # A window over the row, in a buffer of the model's own: packs as long as two prompts do not show it.
    "gpt_neo": (
        {"num_layers": 4, "num_heads": 4, "window_size": 32, "attention_types": [[["global", "local"], 2]]},
        False,
        False,
    ),
    "mamba": ({}, False, False),
    "llama": ({}, True, True),
}


def of_layers(name: str) -> Any:
    """Return a random model of such layers."""
    shape = {key: value for key, value in SMALL.items() if name != "gpt_neo" or key in ("vocab_size", "hidden_size")}
    return random_model(name, **shape | LAYERS[name][0])


def of_lengths(lengths: range) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [[5, 6, *torch.randint(7, 90, (length - 2,), generator=generator).tolist()] for length in lengths]


@pytest.mark.parametrize("longest", [12, 40])
@pytest.mark.parametrize("name", LAYERS)
def test_packs_are_used_as_far_as_they_are_proven(name: str, longest: int) -> None:
    """Prompts of 9 to 12 tokens, and some of 30 to 40, with windows of 16: always the states of the prompts alone."""
    model, prompts = of_layers(name), of_lengths(range(9, 13)) * 9
    prompts += of_lengths(range(30, 41)) if longest == 40 else []
    packs = plan_packs(model, prompts)
    assert (len(packs) < len(prompts)) == LAYERS[name][1 if longest == 12 else 2]
    alone = logits_alone(model, prompts)
    torch.testing.assert_close(logits_packed(model, packs, len(prompts)), alone, atol=1e-4, rtol=1e-4)
    for pack, logits in run_packed(model, prompts, lambda pack: last_logits(model, pack)[0]):
        torch.testing.assert_close(logits, alone[list(pack.prompts)], atol=1e-4, rtol=1e-4)


def test_short_prompts_do_not_vouch_for_long_ones() -> None:
    model, short, long = of_layers("mistral"), of_lengths(range(9, 13)), of_lengths(range(30, 41))
    assert honours_packs(model, short)
    assert not honours_packs(model, short + long)
    assert honours_packs(model, short)


def test_what_is_proven_is_not_asked_again(llama: Any, prompts: list[list[int]]) -> None:
    """A longer prompt costs a pack of two, and nothing what is no longer."""
    lengths: list[int] = []
    llama.register_forward_pre_hook(
        lambda _, __, inputs: lengths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    many = sorted(prompts, key=len)[:4] * 20
    assert honours_packs(llama, many)
    longest = max(map(len, many))
    assert lengths[0] >= PACK_TOKENS and lengths[1:] == [longest, longest]
    lengths.clear()
    assert honours_packs(llama, many[:30]) and not lengths
    assert honours_packs(llama, [*many, prompts[4]])
    assert len(lengths) == 3 and lengths[0] < longest + len(prompts[4])
    lengths.clear()
    assert honours_packs(llama, [*many, prompts[4]]) and not lengths

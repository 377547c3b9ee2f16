"""Packed prompts must give what each prompt gives alone."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from aird.inference.packing import last_logits, make_packs, plan_packs


@torch.no_grad()
def logits_alone(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    """Return the last logits of each prompt, one plain forward pass each, [prompts, vocabulary]."""
    return torch.stack([model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in prompts])


def logits_packed(model: Any, packs: Any, count: int) -> torch.Tensor:
    found = torch.full((count, model.config.vocab_size), torch.nan)
    for pack in packs:
        found[list(pack.prompts)] = last_logits(model, pack)[0]
    return found


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


def test_a_single_prompt(model: Any, prompts: list[list[int]]) -> None:
    (pack,) = plan_packs(model, prompts[:1])
    torch.testing.assert_close(last_logits(model, pack)[0], logits_alone(model, prompts[:1]), atol=2e-5, rtol=0)


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
        assert wrapped.masks == 1  # the mask was offered, and dropped


def test_a_mask_that_is_dropped_gives_other_logits(model: Any, prompts: list[list[int]]) -> None:
    """Otherwise the tests above would pass without any mask."""
    (pack,) = make_packs(prompts, 1000)
    assert (last_logits(WithoutMask(model), pack)[0] - logits_alone(model, prompts)).abs().max() > 0.5


def test_bfloat16_model_is_packed(llama: Any, prompts: list[list[int]]) -> None:
    assert len(plan_packs(llama.to(torch.bfloat16), prompts)) == 1

"""Compensation in closed form, against what it minimises; and which tokens carry the error, against naive passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aird.inference.packing import plan_packs
from aird.patching import compensation, token_shares
from aird.patching.compensation import compensate, input_covariances
from aird.patching.replies import ReplySet
from aird.prompts.chat import post_instruction_tokens, template_prefix

MODULE = "model.layers.1.mlp.down_proj"


def test_covariances_are_those_of_the_inputs(model: Any, prompts: list[list[int]], monkeypatch: Any) -> None:
    modules = [MODULE, "model.layers.2.self_attn.q_proj", "model.layers.0.mlp.up_proj"]
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
    for name in modules:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: rows[name].append(inputs[0].detach().reshape(-1, inputs[0].shape[-1]))
        )
    for prompt in prompts:
        model(torch.tensor([prompt]))
    wanted = {name: torch.cat(each) for name, each in rows.items()}
    monkeypatch.setattr(compensation, "BYTES", 1)  # a pass for every module
    found = dict(input_covariances(model, prompts, modules))
    assert list(found) == modules and len(plan_packs(model, prompts)) >= 1
    for name, each in wanted.items():
        torch.testing.assert_close(found[name], each.T @ each / len(each), rtol=1e-3, atol=1e-5)


def matrices() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return W_o, W_c and the covariance of inputs of which one is a hundred times larger than the others."""
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(24, 40, generator=generator)
    compressed = (original * 4).round() / 4
    inputs = torch.randn(500, 40, generator=generator)
    inputs[:, 3] *= 100
    return original, compressed, inputs.T @ inputs / 500


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_it_leaves_least_of_the_weighted_error(rank: int) -> None:
    original, compressed, covariance = matrices()

    def left(change: torch.Tensor) -> float:
        error = original - compressed - change
        return torch.trace(error @ covariance @ error.T).item()

    made = compensate(MODULE, original, compressed, covariance, rank)
    assert made.left == pytest.approx(left(made.edit.matrix()) / left(torch.zeros(24, 40)), abs=1e-4)
    plain = torch.linalg.svd(original - compressed)
    unweighted = plain.U[:, :rank] * plain.S[:rank] @ plain.Vh[:rank]
    assert left(made.edit.matrix()) < left(unweighted)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):  # no change nearby is better
        up = made.edit.up + 0.01 * torch.randn(made.edit.up.shape, generator=generator)
        assert left(made.edit.matrix()) <= left(up @ made.edit.down)


def test_one_large_input_holds_most_of_the_error_and_full_rank_all_of_it() -> None:
    original, compressed, covariance = matrices()
    assert compensate(MODULE, original, compressed, covariance, 1).shares[0] > 0.9
    whole = compensate(MODULE, original, compressed, covariance, 24)
    torch.testing.assert_close(compressed + whole.edit.matrix(), original, rtol=1e-3, atol=1e-3)
    assert whole.left == pytest.approx(0, abs=1e-5)
    more = compensate(MODULE, original, compressed, covariance, 30)  # more than the matrix has
    assert more.edit.rank == 30 and (more.edit.up[:, 24:] == 0).all()
    same = compensate(MODULE, original, original, covariance, 2)
    assert same.edit.matrix().abs().max() == 0 and same.shares == [0] * 8


def test_an_error_of_rank_one_lies_along_one_direction_alone() -> None:
    original, compressed, covariance = matrices()
    generator = torch.Generator().manual_seed(2)
    error = torch.randn(24, 1, generator=generator) @ torch.randn(1, 40, generator=generator)
    made = compensate(MODULE, original, original + error, covariance, 1)
    assert made.shares == pytest.approx([1, *[0] * 7], abs=1e-5) and made.left == pytest.approx(0, abs=1e-5)
    spread = compensate(MODULE, original, compressed, torch.eye(40), 1)
    assert sum(spread.shares) < 0.9 and spread.shares == sorted(spread.shares, reverse=True)


def test_tokens_that_carry_an_error_are_found_and_no_text_of_prompts_is_told(
    llama: Any, tokenizer: Any, prompts: list[list[int]], monkeypatch: Any
) -> None:
    before, after = template_prefix(tokenizer), post_instruction_tokens(tokenizer)
    replies = [list(range(5, 5 + length)) for length in (3, 0, 4)]
    sets = [
        ReplySet(prompts[:3], replies, torch.empty(0), torch.empty(0), []),
        ReplySet(prompts[3:4], [[7]], *[torch.empty(0)] * 2, []),
    ]
    inputs: list[torch.Tensor] = []
    handle = llama.get_submodule(MODULE).register_forward_pre_hook(lambda _, given: inputs.append(given[0][0].detach()))
    labels = []
    for prompt, reply in zip(prompts[:4], [*replies, [7]], strict=True):
        llama(torch.tensor([[*prompt, *reply]]))
        own = len(prompt) - len(before) - len(after)
        labels += [*range(len(before)), *["prompt"] * own, *range(-len(after), 0), *["reply"] * len(reply)]
    handle.remove()
    rows = torch.cat(inputs)
    # Directions that a token of the template has most of: its input without what all tokens have in common.
    for position in (0, -1):
        own = rows[labels.index(position)]
        direction = torch.linalg.solve(rows.T @ rows + 1e-4 * torch.eye(len(own)), own)
        monkeypatch.setattr(token_shares, "TOLD", 100)
        told = token_shares.token_shares(llama, tokenizer, sets, {MODULE: direction})[MODULE]
        carried: dict[Any, float] = {}
        for label, square in zip(labels, (rows @ direction).square().tolist(), strict=True):
            carried[label] = carried.get(label, 0.0) + square
        names = {each["token"] if each["position"] is None else each["position"]: each for each in told}
        assert len(names) == len(told) == len(before) + len(after) + 2
        for name, each in names.items():
            assert each["share"] == pytest.approx(carried.get(name, 0) / sum(carried.values()), rel=1e-3, abs=1e-5)
        assert told[0]["position"] == position and told[0]["share"] > 0.5
        assert told[0]["token"] == tokenizer.convert_ids_to_tokens((before if position == 0 else after)[position])


def test_inputs_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    original, compressed, covariance = matrices()
    with pytest.raises(ValueError, match=f"{MODULE} gets inputs that are not finite"):
        compensate(MODULE, original, compressed, covariance * torch.nan, 1)

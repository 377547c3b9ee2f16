"""The two interventions on the residual stream, against what they are defined to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_float32
from patches import unit_vector
from torch import nn

from aird.inference.hooks import ablation, addition, hooks, on_input, on_output, remove_component

TOKENS = torch.tensor(
    [[1, 318, 201, 48, 67, 79, 71, 2, 201, 1, 401, 201], [1, 318, 201, 90, 40, 33, 7, 2, 201, 1, 401, 201]]
)
WIDTH = 128


def writers_of(model: Any) -> list[nn.Module]:
    return [module for block in model.model.layers for module in (block.self_attn.o_proj, block.mlp.down_proj)]


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@torch.no_grad()
def logits_of(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return model(input_ids=tokens, use_cache=False).logits.double()


@torch.no_grad()
def residual_states(model: Any) -> dict[str, torch.Tensor]:
    """Return what enters every block and the final norm, and what every writer puts out."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for index, block in enumerate(model.model.layers):

        def before(_: Any, args: Any, kwargs: Any, name: str = f"block {index}") -> None:
            found[name] = args[0] if args else kwargs["hidden_states"]

        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
    handles.append(model.model.norm.register_forward_pre_hook(lambda _, args: found.update(norm=args[0])))
    for index, writer in enumerate(writers_of(model)):

        def after(_: Any, __: Any, output: torch.Tensor, name: str = f"writer {index}") -> None:
            found[name] = output

        handles.append(writer.register_forward_hook(after))
    logits_of(model)
    for handle in handles:
        handle.remove()
    return {name: states.double() for name, states in found.items()}


def test_remove_component_by_hand() -> None:
    states = torch.tensor([[[3.0, 4.0]], [[10.0, 5.0]]])
    # (3, 4) . (0.6, 0.8) = 5, (10, 5) . (0.6, 0.8) = 10
    expected = torch.tensor([[[0.0, 0.0]], [[4.0, -3.0]]])
    torch.testing.assert_close(remove_component(states, torch.tensor([0.6, 0.8])), expected)


def test_remove_component_takes_a_direction_per_row() -> None:
    states = torch.tensor([[[3.0, 4.0]], [[10.0, 5.0]]])
    expected = torch.tensor([[[0.0, 4.0]], [[10.0, 0.0]]])
    torch.testing.assert_close(remove_component(states, torch.eye(2)), expected)


def test_remove_component_takes_rows_that_follow_each_other() -> None:
    """A module may return the tokens of all rows as one list."""
    states = torch.tensor([[3.0, 4.0], [1.0, 2.0], [10.0, 5.0], [6.0, 7.0]])
    expected = torch.tensor([[0.0, 4.0], [0.0, 2.0], [10.0, 0.0], [6.0, 0.0]])
    torch.testing.assert_close(remove_component(states, torch.eye(2)), expected)


def test_ablation_leaves_nothing_along_the_direction(model: Any) -> None:
    unit = unit_vector(0)
    plain = residual_states(model)
    with ablation(model.model.layers, writers_of(model), unit):
        ablated = residual_states(model)
    assert len(plain) == len(ablated) == 4 + 8 + 1
    for name, states in ablated.items():
        assert (plain[name] @ unit).abs().max() > 0.01, name
        assert (states @ unit).abs().max() < 1e-5, name


def test_ablation_removes_nothing_else(model: Any) -> None:
    """The first block's input is the embedding minus its component along r."""
    unit = unit_vector(0)
    embedding = residual_states(model)["block 0"]
    with ablation(model.model.layers, writers_of(model), unit):
        found = residual_states(model)["block 0"]
    expected = embedding @ (torch.eye(WIDTH, dtype=torch.float64) - torch.outer(unit, unit))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_ablation_with_a_direction_per_row_equals_one_by_one(model: Any) -> None:
    units = torch.stack([unit_vector(1), unit_vector(2)])
    with ablation(model.model.layers, writers_of(model), units):
        together = logits_of(model)
    for row, unit in enumerate(units):
        with ablation(model.model.layers, writers_of(model), unit):
            alone = logits_of(model, TOKENS[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=0)
    assert (together - logits_of(model)).abs().max() > 0.05


@torch.no_grad()
def test_weight_form_of_ablation_gives_the_same_logits(tiny_folder: Callable[[str], Path]) -> None:
    """W <- W - r r^T W on the embedding, every o_proj and every down_proj (arXiv 2406.11717, equation 5)."""
    # Its output head is not tied to the embedding, so the edit of the embedding leaves the head alone.
    model = load_float32(tiny_folder("qwen2"))
    unit = unit_vector(3)
    plain = logits_of(model)
    with ablation(model.model.layers, writers_of(model), unit):
        by_hooks = logits_of(model)
    removal = torch.outer(unit, unit)
    embedding = model.model.embed_tokens.weight
    # An embedding holds the vectors that it writes as rows, a linear module writes its columns.
    embedding.copy_((embedding.double() - embedding.double() @ removal).float())
    for writer in writers_of(model):
        writer.weight.copy_((writer.weight.double() - removal @ writer.weight.double()).float())
    torch.testing.assert_close(logits_of(model), by_hooks, atol=1e-4, rtol=0)
    assert (by_hooks - plain).abs().max() > 0.05


def test_addition_adds_exactly_at_one_block(model: Any) -> None:
    vector = 3 * unit_vector(4)
    plain = residual_states(model)
    with addition(model.model.layers[2], vector):
        added = residual_states(model)
    for name in ("block 0", "block 1", "writer 3"):
        assert torch.equal(added[name], plain[name]), name
    expected = (plain["block 2"].float() + vector.float()).double()
    assert torch.equal(added["block 2"], expected)
    assert (added["block 3"] - plain["block 3"]).abs().max() > 0.05


def test_addition_with_a_vector_per_row_equals_one_by_one(model: Any) -> None:
    vectors = torch.stack([2 * unit_vector(5), -unit_vector(6)])
    with addition(model.model.layers[1], vectors):
        together = logits_of(model)
    for row, vector in enumerate(vectors):
        with addition(model.model.layers[1], vector):
            alone = logits_of(model, TOKENS[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=0)


def test_hooks_are_removed(model: Any) -> None:
    before = logits_of(model)
    with ablation(model.model.layers, writers_of(model), unit_vector(0)):
        assert hook_count(model) == 12
    assert hook_count(model) == 0
    assert torch.equal(logits_of(model), before)


def test_hooks_are_removed_after_an_error_in_the_body(model: Any) -> None:
    with pytest.raises(KeyError), ablation(model.model.layers, writers_of(model), unit_vector(0)):
        raise KeyError
    with pytest.raises(KeyError), addition(model.model.layers[0], unit_vector(0)):
        raise KeyError
    assert hook_count(model) == 0


def test_hooks_are_removed_after_an_error_in_a_hook(model: Any) -> None:
    with pytest.raises(RuntimeError), addition(model.model.layers[0], torch.zeros(WIDTH + 1)):
        logits_of(model)
    assert hook_count(model) == 0


def test_hooks_registered_before_a_failed_registration_are_removed() -> None:
    module = nn.Linear(2, 2)
    not_a_module: Any = object()
    with pytest.raises(AttributeError), hooks([(module, on_input(lambda x: x)), (not_a_module, on_input(lambda x: x))]):
        raise AssertionError("the body must not run")
    assert hook_count(module) == 0


def test_on_output_changes_the_first_of_several_outputs() -> None:
    class Attention(nn.Module):
        def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, str]:
            return states, "weights"

    module = Attention()
    with hooks(forward=[(module, on_output(lambda y: y + 1))]):
        states, rest = module(torch.zeros(2))
    assert states.tolist() == [1, 1]
    assert rest == "weights"


def test_on_input_finds_states_given_by_name() -> None:
    class Block(nn.Module):
        def forward(self, hidden_states: torch.Tensor, scale: int = 1) -> torch.Tensor:
            return scale * hidden_states

    block = Block()
    with hooks([(block, on_input(lambda x: x + 1))]):
        assert block(hidden_states=torch.zeros(2), scale=5).tolist() == [5, 5]
        assert block(torch.zeros(2), scale=3).tolist() == [3, 3]

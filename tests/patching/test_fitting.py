"""Fitted edits: the regression by hand, and what a fit does to a model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_float32
from models.families import tiny_family
from patches import unit_vector

from aird.inference.hooks import hooks
from aird.models.structure import residual_writers
from aird.patching.edited import edited
from aird.patching.fitting import fit_edits, record_projections, ridge_solution, targets

POSITIONS = 3
UNIT = unit_vector()


def modules(model: Any, blocks: list[int]) -> list[str]:
    writers = residual_writers(model)
    return [name for block in blocks for name in writers[block].names]


def damaged_copy(original: Path, folder: Path) -> Path:
    """Write a checkpoint with noise added to every matrix."""
    shutil.copytree(original, folder)
    damaged(load_float32(original)).to(torch.bfloat16).save_pretrained(folder)
    return folder


def damaged(model: Any, seed: int = 2) -> Any:
    """Add noise to every matrix of a model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model


def test_ridge_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    wanted = torch.tensor([1.0, 4.0], dtype=torch.float64)
    # penalty = 0.2 * (1 + 4) / 2 = 0.5: a = (1 / (1 + 0.5), 2 * 4 / (4 + 0.5))
    assert ridge_solution(features, wanted, 0.2).tolist() == pytest.approx([1 / 1.5, 8 / 4.5])


@pytest.mark.parametrize("shape", [(5, 12), (12, 5)])
def test_both_forms_of_the_regression_agree(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=generator, dtype=torch.float64)
    wanted = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    penalty = 0.1 * features.square().sum() / shape[1]
    normal = features.T @ features + penalty * torch.eye(shape[1], dtype=torch.float64)
    expected = torch.linalg.solve(normal, features.T @ wanted)
    torch.testing.assert_close(ridge_solution(features, wanted, 0.1), expected)


def test_targets_by_hand() -> None:
    projections = {"m": torch.tensor([[5.0, 1.0], [1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)}
    wanted = targets(projections, [True, False, False], 2.0)["m"]
    # The harmless mean is (2, 3); the harmful prompt moves from it twice as far.
    assert wanted.tolist() == [[8.0, -1.0], [1.0, 2.0], [3.0, 4.0]]


def test_projections_are_those_of_single_prompts(model: Any, prompts: list[list[int]]) -> None:
    (name,) = modules(model, [1])[:1]
    found = record_projections(model, prompts, POSITIONS, UNIT, [name])[name]
    outputs: list[torch.Tensor] = []
    handle = dict(model.named_modules())[name].register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
    with torch.no_grad():
        for prompt in prompts:
            model(input_ids=torch.tensor([prompt]))
    handle.remove()
    expected = torch.stack([output[0, -POSITIONS:].double() @ UNIT for output in outputs])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_an_undamaged_model_gets_no_edit(model: Any, prompts: list[list[int]]) -> None:
    wanted = record_projections(model, prompts, POSITIONS, UNIT, modules(model, [1, 2]))
    edits = fit_edits(model, prompts, wanted, UNIT, [1, 2], 0.01)
    assert [edit.module for edit in edits] == modules(model, [1, 2])
    assert max(edit.row.abs().max().item() for edit in edits) < 1e-5


def test_a_fit_restores_the_projections(model: Any, prompts: list[list[int]]) -> None:
    """With all edits in place each module writes what was wanted, also behind the first edit."""
    names = modules(model, [1, 3])
    wanted = record_projections(model, prompts, POSITIONS, UNIT, names)
    compressed = damaged(model)
    before = record_projections(compressed, prompts, POSITIONS, UNIT, names)
    weights = {name: parameter.clone() for name, parameter in compressed.named_parameters()}
    edits = fit_edits(compressed, prompts, wanted, UNIT, [1, 3], 1e-6)
    # The model is as it was before.
    assert all(torch.equal(parameter, weights[name]) for name, parameter in compressed.named_parameters())
    again = record_projections(compressed, prompts, POSITIONS, UNIT, names)
    assert all(torch.equal(again[name], before[name]) for name in names)

    with edited(compressed, edits):
        after = record_projections(compressed, prompts, POSITIONS, UNIT, names)
    for name in names:
        scale = wanted[name].std()
        assert (before[name] - wanted[name]).abs().max() > 0.1 * scale
        # Fewer rows than features, so that hardly anything of the penalty is left of the error.
        torch.testing.assert_close(after[name], wanted[name], atol=1e-2 * scale.item(), rtol=0)


def test_a_family_whose_modules_drop_the_dimension_of_rows(prompts: list[list[int]]) -> None:
    """OPT's feed-forward layers get and give [tokens, width]."""
    model = tiny_family("opt", vocab_size=512)
    writers = modules(model, [1])
    wanted = record_projections(model, prompts, POSITIONS, UNIT[: model.config.hidden_size], writers)
    edits = fit_edits(damaged(model), prompts, wanted, UNIT[: model.config.hidden_size], [1], 0.01)
    assert [edit.module for edit in edits] == writers and any("fc2" in name for name in writers)
    assert all(edit.row.isfinite().all() and edit.row.abs().max() > 0 for edit in edits)


def test_behind_a_norm_a_fit_restores_what_is_contributed(prompts: list[list[int]]) -> None:
    model = tiny_family("gemma2", vocab_size=512)
    unit = unit_vector(width=64)
    names = modules(model, [1, 2])
    wanted = record_projections(model, prompts, POSITIONS, unit, names)
    contributed: list[torch.Tensor] = []
    with (
        torch.no_grad(),
        hooks(forward=[(model.model.layers[1].post_attention_layernorm, lambda *each: contributed.append(each[2]))]),
    ):
        model(input_ids=torch.tensor([prompts[0]]))
    expected = contributed[0][0, -POSITIONS:].double() @ unit
    torch.testing.assert_close(wanted[names[0]][0], expected, atol=1e-5, rtol=1e-4)
    compressed = damaged(model)
    before = record_projections(compressed, prompts, POSITIONS, unit, names)
    with edited(compressed, fit_edits(compressed, prompts, wanted, unit, [1, 2], 1e-6)):
        after = record_projections(compressed, prompts, POSITIONS, unit, names)
    for name in names:
        # The edit's own change of rms(y) is not in the regression.
        assert (after[name] - wanted[name]).norm() < 0.3 * (before[name] - wanted[name]).norm(), name


def test_an_edit_is_its_matrix(model: Any, prompts: list[list[int]]) -> None:
    recorded = record_projections(model, prompts, POSITIONS, UNIT, modules(model, [2]))
    edit = fit_edits(model, prompts, targets(recorded, [True, True, False, False, False], 2.0), UNIT, [2], 0.01)[1]
    assert edit.row.abs().max() > 0
    module = dict(model.named_modules())[edit.module]
    tokens = torch.tensor([prompts[0]])
    with torch.no_grad(), edited(model, [edit]):
        hooked = model(input_ids=tokens).logits
    with torch.no_grad():
        module.weight += edit.matrix()
        merged = model(input_ids=tokens).logits
    torch.testing.assert_close(hooked, merged, atol=1e-4, rtol=1e-4)

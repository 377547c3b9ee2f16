"""Edits of a mixture's experts: adapter, merged checkpoint and edited weights are one model, in every family."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models.families import tiny_family
from patches import merged, saved_direction, unit_vector
from peft import PeftModel
from tiny_model import TOKENS, logits_of, new
from transformers import AutoModelForCausalLM

from aird.compression.compress import compress
from aird.compression.recipes.round_to_nearest import RoundToNearest
from aird.evaluation.engines.transformers import Transformers
from aird.evaluation.engines.vllm import Vllm
from aird.evaluation.suite_run import prepare_checkpoint
from aird.models.blocks import ArchitectureError
from aird.models.experts import is_transposed, matrix_reader
from aird.models.loading import load_model, load_structure
from aird.models.structure import residual_writers
from aird.patching.adapters import load_adapter, merge, save_adapter
from aird.patching.edited import edited
from aird.patching.edits import Edit, make_edits
from aird.patching.method import PatchInputs
from aird.patching.methods import parse_patch
from aird.patching.patch_files import make_patch

# Experts stored one by one under other names and under their own, as one tensor of another name, and as one of swapped
# dimensions; DeepSeek's first block is dense.
FAMILIES = ("mixtral", "qwen3_moe", "olmoe", "deepseek_v2", "granitemoe", "gpt_oss")
UNIT = unit_vector(width=64)


def saved(family: str, folder: Path) -> Path:
    tiny_family(family).save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def edits_of(folder: Path, blocks: tuple[int, ...] = (0, 1, 2)) -> list[Edit]:
    """Return strong edits of all that the blocks write with."""
    structure = load_structure(folder)
    writers = residual_writers(structure)
    names = [name for block in blocks for name in (*writers[block].names, *writers[block].experts)]
    read, settings = matrix_reader(folder, structure), parse_patch({"method": "scale", "alpha": 8.0})
    return make_edits(names, UNIT, read, read, settings)[0]


@torch.no_grad()
def edit_by_hand(model: Any, edits: list[Edit]) -> None:
    for edit in edits:
        if not edit.of_experts:
            model.get_submodule(edit.module).weight += edit.matrix()
        else:
            parameter = model.get_parameter(edit.module)
            parameter += edit.matrix().transpose(1, 2) if is_transposed(model, edit.module) else edit.matrix()


@pytest.mark.parametrize(("family", "rank"), [*((each, 1) for each in FAMILIES), ("mixtral", 2), ("gpt_oss", 2)])
def test_adapter_by_peft_equals_edited_weights_and_merged_checkpoint(family: str, rank: int, tmp_path: Path) -> None:
    base = saved(family, tmp_path / "base")
    edits = edits_of(base)
    if rank == 2:  # each expert gets a second column of its own
        generator = torch.Generator().manual_seed(1)
        ups, downs = (
            [torch.cat([factor, factor * torch.randn(factor.shape, generator=generator)], dim) for factor in factors]
            for dim, factors in ((-1, [edit.up for edit in edits]), (-2, [edit.down for edit in edits]))
        )
        edits = [replace(edit, up=up, down=down) for edit, up, down in zip(edits, ups, downs, strict=True)]
    assert sum(edit.of_experts for edit in edits) == (2 if family == "deepseek_v2" else 3)
    by_hand = load(base)
    plain = logits_of(by_hand)
    edit_by_hand(by_hand, [edit for edit in edits if edit.of_experts])
    # The experts alone make a difference.
    assert (logits_of(by_hand) - plain).abs().max() > 0.1
    edit_by_hand(by_hand, [edit for edit in edits if not edit.of_experts])
    expected = logits_of(by_hand)

    adapter = new(tmp_path / "adapter")
    save_adapter(edits, adapter, "base", by_hand)
    torch.testing.assert_close(logits_of(load_model(base, adapter)), expected, atol=1e-4, rtol=0)
    joined = PeftModel.from_pretrained(load(base), str(adapter)).merge_and_unload()
    torch.testing.assert_close(logits_of(joined), expected, atol=1e-4, rtol=0)
    updates = load_adapter(adapter)
    by_name = {edit.module: edit.matrix() for edit in edits}
    assert by_name.keys() == {update.module for update in updates}
    assert all(torch.equal(update.matrix(), by_name[update.module]) for update in updates)
    torch.testing.assert_close(logits_of(load(merged(base, updates, tmp_path / "merged"))), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ("mixtral", "gpt_oss"))
def test_hooks_do_what_edited_weights_do_and_gradients_reach_what_is_read(family: str, tmp_path: Path) -> None:
    base = saved(family, tmp_path / "base")
    edits = edits_of(base)
    model, by_hand = load(base), load(base)
    edit_by_hand(by_hand, edits)
    plain = logits_of(model)
    with edited(model, edits):
        torch.testing.assert_close(logits_of(model), logits_of(by_hand), atol=1e-4, rtol=0)
    assert torch.equal(logits_of(model), plain)
    model.requires_grad_(False)
    learnt = [replace(edit, down=edit.down.clone().requires_grad_()) for edit in edits]
    with edited(model, learnt):
        model(input_ids=TOKENS, use_cache=False).logits.square().mean().backward()
    assert all(edit.down.grad is not None and bool(edit.down.grad.abs().max() > 0) for edit in learnt)


def test_experts_of_which_something_else_is_known_than_they_do_are_refused() -> None:
    """Square matrices: only values tell rows from columns."""
    model = tiny_family("mixtral", intermediate_size=64)
    assert residual_writers(model)[1].experts == ("model.layers.1.mlp.experts.down_proj",)
    model = tiny_family("mixtral", intermediate_size=64)
    model.set_experts_implementation("eager")  # which does not look at it
    model.model.layers[1].mlp.experts.is_transposed = True
    with pytest.raises(ArchitectureError, match=r"layers\.1\.mlp\.experts\.down_proj: an edit .* in other ways too"):
        residual_writers(model)


def test_shared_experts_are_named_as_not_edited() -> None:
    (dense, mixture) = residual_writers(tiny_family("deepseek_v2"))[:2]
    assert dense.experts == () and dense.obstacles == []
    assert mixture.experts == ("model.layers.1.mlp.experts.down_proj",)
    assert mixture.obstacles == [
        "model.layers.1.mlp is edited in its routed experts only, not in model.layers.1.mlp.shared_experts.down_proj"
    ]


@pytest.fixture(scope="module")
def inputs(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> PatchInputs:
    """Return a tiny Mixtral of 4 bits, its original and a direction."""
    folder, original = tmp_path_factory.mktemp("patch"), tiny_folder("mixtral")
    compress(original, folder / "w4a16", RoundToNearest(weight_bits=4, group_size=64), None)
    return PatchInputs("small-w4a16", original, folder / "w4a16", saved_direction(folder, unit_vector()))


def test_the_record_and_the_card_say_what_was_edited(inputs: PatchInputs, tmp_path: Path) -> None:
    settings = parse_patch({"method": "project"})
    record = make_patch(settings, inputs, tmp_path / "adapter", tmp_path / "record.json")
    names = ["model.layers.1.self_attn.o_proj", "model.layers.1.mlp.experts.down_proj"]
    assert [edit["module"] for edit in record["edits"]] == names
    assert all(edit["row_norm_after"] == pytest.approx(1, abs=1e-4) for edit in record["edits"])
    assert record["not_edited"] == []
    assert record["experts"] == {"target_parameters": names[1:]}
    configuration = json.loads((tmp_path / "adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert configuration["target_modules"] == names[:1] and configuration["target_parameters"] == names[1:]
    card = (tmp_path / "adapter/README.md").read_text(encoding="utf-8")
    assert "enable-lora" not in card and "Servers take no adapter of experts" in card


def test_an_engine_gets_quantised_experts_merged_into_a_dense_copy(inputs: PatchInputs, tmp_path: Path) -> None:
    settings = parse_patch({"method": "scale", "alpha": 8.0, "blocks": "all"})
    make_patch(settings, inputs, tmp_path / "adapter", tmp_path / "record.json")
    with pytest.raises(ValueError, match="quantised, and cannot hold some of them dense"):
        merge(inputs.compressed, load_adapter(tmp_path / "adapter"), tmp_path)
    served, left, dense = prepare_checkpoint(inputs.compressed, tmp_path / "adapter", Vllm(None), tmp_path)
    assert left is None and dense
    assert prepare_checkpoint(inputs.compressed, tmp_path / "adapter", Transformers(), tmp_path) == (
        inputs.compressed,
        tmp_path / "adapter",
        False,
    )
    plain, adapted, of_served = (
        logits_of(load_model(*arguments, dtype=torch.float32))
        for arguments in ((inputs.compressed,), (inputs.compressed, tmp_path / "adapter"), (served,))
    )
    effect = (adapted - plain).abs().mean()
    assert effect > 0.1 and (of_served - adapted).abs().mean() < 0.05 * effect

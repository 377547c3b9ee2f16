"""Blocks and what they write to the residual stream: found by structure, and proven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from models import families
from patches import unit_vector
from torch import nn

from aird.models.block_proof import norm_gain
from aird.models.block_reading import Reading
from aird.models.blocks import ArchitectureError, Writers, decoder_blocks
from aird.models.importing import prove_structure
from aird.models.loading import load_structure, stored_gains
from aird.models.structure import residual_writers, writer_gains, writer_modules


def test_blocks_and_writers(model: Any) -> None:
    assert decoder_blocks(model) is model.model.layers
    assert [block.names for block in residual_writers(model)] == [
        (f"model.layers.{index}.self_attn.o_proj", f"model.layers.{index}.mlp.down_proj") for index in range(4)
    ]
    # A direction is removed at the very modules whose matrices are edited.
    assert writer_modules(model) == [
        model.get_submodule(name) for each in residual_writers(model) for name in each.names
    ]
    assert not writer_gains(model)


def test_writers_are_found_without_weights(original: Path) -> None:
    structure = load_structure(original)
    assert all(parameter.is_meta for parameter in structure.parameters())
    assert residual_writers(structure)[3].names[0] == "model.layers.3.self_attn.o_proj"


def test_no_hook_is_left(model: Any) -> None:
    residual_writers(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("family", families.QUICK)
def test_a_family_is_right(family: str) -> None:
    measured = families.measure(family)
    assert measured.right, measured
    assert families.written()[family] == families.outcome(measured), "write docs/models.md again"


# Transformers' model types of the paper's models.
PAPER = {
    "llama-2-7b-chat": "llama",
    "llama-3-8b-instruct": "llama",
    "qwen2.5-7b-instruct": "qwen2",
    "gemma-2-9b-it": "gemma2",
    "mistral-7b-instruct-v0.3": "mistral",
}


def test_the_papers_families_are_among_those_that_are_right() -> None:
    """What the thorough test measures of these is checked with the table, by which they are found here."""
    models = yaml.safe_load((families.PAGE.parent.parent / "config/paper.yaml").read_text(encoding="utf-8"))["models"]
    assert models.keys() == PAPER.keys()
    written = families.written()
    assert all(written[family][0] == "right" for family in PAPER.values())


@pytest.mark.thorough
def test_every_family_is_right_or_refused() -> None:
    measured = families.measure_all()
    assert sum(isinstance(each, families.Measured) for each in measured.values()) >= 40
    assert not [each for each in measured.values() if isinstance(each, families.Measured) and not each.proper]
    outcomes = {family: each and families.outcome(each) for family, each in measured.items()}
    assert families.table(outcomes) in families.PAGE.read_text(encoding="utf-8"), "write docs/models.md again"


def test_a_fault_of_aird_is_no_missing_tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "families", lambda: ["llama", "reformer"])
    measured = families.measure_all()
    assert measured["reformer"] is None and measured["llama"] is not None and measured["llama"].right

    def fault(_: Any) -> Any:
        raise KeyError("of aird")

    monkeypatch.setattr(families, "writer_gains", fault)
    with pytest.raises(KeyError, match="of aird"):
        families.measure_all()


def test_what_an_old_column_would_have_done_is_seen() -> None:
    """The measure tells r from r / g: an edit that writes r before a norm has another effect."""
    model = families.tiny_family("gemma2")
    unit, writers = unit_vector(width=64), residual_writers(model)
    assert min(beyond for beyond, _ in families.effects(model, unit, writers)) > 0.999
    assert max(beyond for beyond, _ in families.effects(model, unit, writers, with_gains=False)) < 0.98


def test_ablation_before_the_norm_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.tiny_family("olmo2")
    unit = unit_vector(width=64)
    linear = [model.get_submodule(name) for block in residual_writers(model) for name in block.names]
    monkeypatch.setattr(families, "writer_modules", lambda _: linear)
    assert families.remains(model, unit) > 0.01


def test_a_module_that_is_not_seen_is_an_error_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values are compared, whatever was read from the operations."""
    from aird.models import structure

    dominated = families.tiny_family("llama").to(torch.bfloat16)
    with torch.no_grad():  # a token of the pass, of which rounding alone is more than all other states
        dominated.model.embed_tokens.weight[5] *= 1e4
    residual_writers(dominated)
    read = Reading.run

    def without_mlp(reading: Any) -> Any:
        return [Writers(each.block, each.contributions[:1]) for each in read(reading)]

    monkeypatch.setattr(Reading, "run", without_mlp)
    structure._PROVEN.clear()
    for model in (families.tiny_family("llama"), dominated):
        with pytest.raises(
            ArchitectureError, match=r"model\.layers\.0: .*\(1 x model\.layers\.0\.self_attn\.o_proj\): up to \d"
        ):
            residual_writers(model)


def test_a_block_that_changes_its_input_in_place_is_refused() -> None:
    model = families.tiny_family("llama")
    block = model.model.layers[1]
    forward = block.forward

    def half(hidden_states: torch.Tensor, **more: Any) -> torch.Tensor:
        return forward(0.5 * hidden_states, **more)

    block.forward = half
    with pytest.raises(ArchitectureError, match=r"model\.layers\.1 .*reaches its output with the factor 0\.5"):
        residual_writers(model)


def test_what_is_added_in_place_is_not_taken_for_the_module_before() -> None:
    """As in Llama 4, whose routed experts are added to the output of the shared one."""
    model = families.tiny_family("llama")
    mlp = model.model.layers[2].mlp
    forward = mlp.forward

    def more(hidden_states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = forward(hidden_states)
        return output.add_(hidden_states.tanh())

    mlp.forward = more
    contribution = residual_writers(model)[2].contributions[1]
    assert (contribution.module, contribution.writer) == ("model.layers.2.mlp", None)
    assert "LlamaMLP" in contribution.obstacle
    assert families.remains(model, unit_vector(width=64)) < 1e-4


def test_a_constant_factor_is_read() -> None:
    model = families.tiny_family("granite")
    assert {each.scale for block in residual_writers(model) for each in block.contributions} == {0.3}


def test_experts_are_one_contribution_and_write_with_a_matrix_each() -> None:
    block = residual_writers(families.tiny_family("mixtral"))[1]
    (attention, mlp) = block.contributions
    assert attention.writer == "model.layers.1.self_attn.o_proj"
    assert (mlp.module, mlp.writer, mlp.experts) == ("model.layers.1.mlp", None, "model.layers.1.mlp.experts.down_proj")
    assert block.names == (attention.writer,) and block.experts == (mlp.experts,)
    assert block.obstacles == []


def test_experts_that_follow_no_known_interface_are_left_alone() -> None:
    block = residual_writers(families.tiny_family("llama4_text"))[1]
    assert block.experts == () and block.obstacles == [block.contributions[1].obstacle]
    assert "model.layers.1.feed_forward (Llama4TextMoe)" in block.obstacles[0]


def test_the_gain_of_a_norm_is_asked_from_the_module() -> None:
    model = families.tiny_family("gemma2")
    norm = model.model.layers[0].post_attention_layernorm
    gain = norm_gain("norm", norm, 64)
    torch.testing.assert_close(gain, 1 + norm.weight.double(), atol=1e-6, rtol=0)
    assert torch.equal(writer_gains(model)["model.layers.0.self_attn.o_proj"], gain)


def test_a_norm_with_a_mean_or_without_a_gain_is_no_norm_to_edit_before() -> None:
    with pytest.raises(ArchitectureError, match=r"some\.norm \(LayerNorm\).*no RMS norm"):
        norm_gain("some.norm", nn.LayerNorm(64), 64)
    model = families.tiny_family("olmo2")
    model.model.layers[1].post_attention_layernorm.weight.data[3] = 0
    assert residual_writers(model)[1].names == ("model.layers.1.mlp.down_proj",)
    assert "gain is zero" in residual_writers(model)[1].obstacles[0]


def test_a_model_with_such_a_norm_is_refused_at_import_by_name(tmp_path: Path) -> None:
    model = families.tiny_family("olmo2")
    model.model.layers[1].post_attention_layernorm.weight.data[3] = 0
    model.save_pretrained(tmp_path / "zero")
    with pytest.raises(
        ArchitectureError,
        match=r"layers\.1\.post_attention_layernorm: its gain is zero .*no patch of this model is made",
    ):
        prove_structure(tmp_path / "zero")
    with pytest.raises(ArchitectureError, match=r"layers\.1\.post_attention_layernorm: its gain is zero"):
        stored_gains(tmp_path / "zero")  # as of `aird patch`
    families.tiny_family("olmo2").save_pretrained(tmp_path / "right")
    prove_structure(tmp_path / "right")


def test_the_gains_are_read_from_files(tmp_path: Path) -> None:
    for family in ("gemma2", "llama"):
        model = families.tiny_family(family)
        model.to(torch.bfloat16).save_pretrained(tmp_path / family)
        gains = stored_gains(tmp_path / family)
        assert gains.keys() == writer_gains(model).keys()
        assert all(torch.equal(gain, writer_gains(model)[writer]) for writer, gain in gains.items())
    assert not gains


def test_a_wrapped_model_is_refused_with_its_reason(tmp_path: Path) -> None:
    configuration = families.CONFIG_MAPPING["llava"](text_config=families.tiny_configuration("llama").to_dict())
    configuration.save_pretrained(tmp_path)
    with pytest.raises(
        ArchitectureError, match=r"no causal language model of the type llava; save its text model \(llama\)"
    ):
        load_structure(tmp_path)


def test_a_failed_forward_pass_is_named() -> None:
    model = families.tiny_family("llama")
    model.model.norm = nn.Linear(3, 3)
    with pytest.raises(ArchitectureError, match="LlamaForCausalLM: a forward pass of 8 tokens failed: .*shapes"):
        residual_writers(model)


def test_no_list_of_blocks(llama: Any) -> None:
    llama.config.num_hidden_layers = 7
    with pytest.raises(ArchitectureError, match=r"looked for a module list of 7 decoder blocks.*'model.layers': 4"):
        decoder_blocks(llama)

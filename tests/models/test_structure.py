"""Blocks and residual-stream writers, found by structure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig, OPTConfig, PreTrainedConfig, XGLMConfig

from aird.models.loading import load_structure
from aird.models.structure import ArchitectureError, decoder_blocks, residual_writers


def test_blocks_and_writers(model: Any) -> None:
    assert decoder_blocks(model) is model.model.layers
    assert [pair.names for pair in residual_writers(model)] == [
        (f"model.layers.{index}.self_attn.o_proj", f"model.layers.{index}.mlp.down_proj") for index in range(4)
    ]


def test_writers_are_found_without_weights(tiny_folder: Callable[[str], Path]) -> None:
    structure = load_structure(tiny_folder("llama"))
    assert structure.lm_head.weight.is_meta
    assert residual_writers(structure)[3].attention == "model.layers.3.self_attn.o_proj"


def test_no_hook_is_left(model: Any) -> None:
    residual_writers(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_block_without_an_mlp_module_is_refused_by_name() -> None:
    """In XGLM both linear modules of the MLP stand in the block directly."""
    config = XGLMConfig(
        vocab_size=64, d_model=16, ffn_dim=32, num_layers=2, attention_heads=2, max_position_embeddings=32
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ArchitectureError, match=r"model\.layers\.0 .*self_attn\.out_proj.*fc1.*fc2"):
        residual_writers(model)


def test_a_failed_forward_pass_is_named() -> None:
    """OPT takes its positions from a mask of two dimensions only."""
    config = OPTConfig(
        vocab_size=64, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, word_embed_proj_dim=16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ArchitectureError, match="OPTForCausalLM: a forward pass of one token failed"):
        residual_writers(model)


def test_a_mixture_of_experts_is_refused_by_name() -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ArchitectureError, match=r"model\.layers\.0 \(MixtralDecoderLayer\).*not\s+supported"):
        residual_writers(model)


def test_modules_that_are_not_linear_are_refused() -> None:
    config: PreTrainedConfig = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ArchitectureError, match=r"transformer\.h\.0 \(GPT2Block\)"):
        residual_writers(model)


def test_no_list_of_blocks(llama: Any) -> None:
    llama.config.num_hidden_layers = 7
    with pytest.raises(ArchitectureError, match=r"looked for a module list of 7 decoder blocks.*'model.layers': 4"):
        decoder_blocks(llama)

"""Tiny wrappers of vision and language, of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_model import as_qwen2, randomise

from aird.models.loading import load_tokenizer
from aird.support.files import write_json

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
ROTARY = {"rope_type": "default", "rope_theta": 500000.0}
# family: (what its configuration needs beyond the text model's sizes, the class that comes out)
WRAPPERS: dict[str, tuple[dict[str, Any], str]] = {
    "gemma3": (
        {"text_config": {"head_dim": 16, "sliding_window": 8}, "vision_config": VISION, "mm_tokens_per_image": 4},
        "Gemma3ForCausalLM",
    ),
    "llava": (
        {"text_config": {"model_type": "llama"}, "vision_config": {**VISION, "model_type": "clip_vision_model"}},
        "LlamaForCausalLM",
    ),
    "mistral3": (
        {
            "text_config": {"model_type": "mistral", "head_dim": 16},
            "vision_config": {"model_type": "pixtral", **VISION},
        },
        "MistralForCausalLM",
    ),
    "smolvlm": ({"text_config": {"model_type": "llama"}, "vision_config": VISION}, "LlamaForCausalLM"),
    "qwen2_5_vl": (
        {"text_config": {"rope_parameters": {**ROTARY, "mrope_section": [2, 2, 4]}}, "vision_config": QWEN_VISION},
        "Qwen2ForCausalLM",
    ),
    "qwen3_vl": (
        {
            "text_config": {
                "head_dim": 16,
                "rope_parameters": {**ROTARY, "mrope_section": [2, 3, 3], "mrope_interleaved": True},
            },
            "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0]},
        },
        "Qwen3ForCausalLM",
    ),
}


def write_wrapper(family: str, plain: Path, folder: Path) -> Any:
    """Write a wrapper of random weights with a tokenizer, and return it in float32."""
    tokenizer = load_tokenizer(plain)
    more, _ = WRAPPERS[family]
    special = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    text = {**TEXT, **special, "pad_token_id": tokenizer.pad_token_id, **more["text_config"]}
    configuration = transformers.CONFIG_MAPPING[family](**{**more, "text_config": text})
    wrapper = transformers.AutoModelForImageTextToText.from_config(configuration, dtype=torch.float32).eval()
    randomise(wrapper)
    wrapper.tie_weights()
    wrapper.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if family == "qwen2_5_vl":
        as_qwen2(folder)
    write_json(folder / "preprocessor_config.json", {})
    return wrapper

"""What the documentation says of ready-made checkpoints is what the code knows; every refusal says what helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aird.models.formats.compressed_tensors import PACKINGS
from aird.models.refusals import REFUSED, checkpoint_refusal, original_refusal, patch_refusal, refusal

PAGE = Path(__file__).resolve().parents[2] / "docs/checkpoints.md"


def test_the_table_of_refused_formats() -> None:
    heading = "| `quant_method` | format | what helps |"
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index(heading) :].partition("\n\n")[0]
    alike: dict[str, dict[str, str]] = {}
    for method, (name, what) in REFUSED.items():
        alike.setdefault(what, {})[f"`{method}`"] = name
    rows = [f"| {', '.join(names)} | {', '.join(names.values())} | {what} |" for what, names in alike.items()]
    assert [line for line in table.splitlines() if line.startswith("| ")] == [heading, *rows]


CT: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize(
    "quantisation",
    [
        None,
        *({**CT, "format": packing} for packing in PACKINGS),
        {
            **CT,
            "format": "mixed-precision",
            "config_groups": {"a": {"format": "pack-quantized"}, "b": {"format": None}},
        },
        {**CT, "sparsity_config": {"format": "dense"}, "kv_cache_scheme": None},
        GPTQ,
        {**GPTQ, "bits": 3, "checkpoint_format": "gptq_v2", "dynamic": {}},
        AWQ,
        {**AWQ, "version": "GEMM"},
        FP8,
        BNB,
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "bnb_4bit_quant_storage": "bfloat16"},
    ],
)
def test_read(quantisation: dict[str, Any] | None) -> None:
    assert refusal(quantisation) is None and patch_refusal(quantisation) is None


@pytest.mark.parametrize(
    ("quantisation", "said"),
    [
        ({**CT, "format": "marlin-24"}, "packed as marlin-24, which is not read; save it"),
        ({**CT, "sparsity_config": {"format": "sparse-24-bitmask"}}, "packed as sparse-24-bitmask"),
        ({**CT, "config_groups": {"a": {"format": "mxfp8-quantized"}}}, "packed as mxfp8-quantized"),
        ({**CT, "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "scales of a quantised key/value cache"),
        ({**GPTQ, "bits": 5}, "GPTQ with 5 bits, which is not read; take one with 2, 3, 4 or 8"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "packed for marlin, which is not read; save it with format gptq"),
        ({**GPTQ, "dynamic": {"+:.*": {"bits": 8}}}, "other settings for some modules"),
        ({**AWQ, "bits": 8}, "AWQ with 8 bits"),
        ({**AWQ, "version": "gemv"}, "packed for gemv, which is not read; save it with version gemm"),
        ({**AWQ, "zero_point": False}, "AWQ without zero points"),
        ({"quant_method": "fp8"}, "FP8 without blocks of weights .AutoFP8., which is not read; convert"),
        ({**FP8, "activation_scheme": "static"}, "stored scales of activations"),
        ({**BNB, "bnb_4bit_quant_storage": "bfloat16"}, "kept in bfloat16, which is not read; save it with"),
        ({}, "quantised by an unnamed method, which is not known; convert"),
        *(({"quant_method": method}, f"is stored as {REFUSED[method][0]}, which") for method in REFUSED),
    ],
)
def test_refused(quantisation: dict[str, Any], said: str) -> None:
    reason = refusal(quantisation)
    assert reason is not None and said.replace(".AutoFP8.", "(AutoFP8)") in reason and ";" in reason


@pytest.mark.parametrize(
    "config",
    [
        {"text_config": {"model_type": "llama"}, "quantization_config": GPTQ},
        {"text_config": {"model_type": "llama", "quantization_config": GPTQ}},
        {"vision_config": {"depth": 32}, "hidden_size": 64, "quantization_config": GPTQ},
    ],
)
def test_a_quantised_wrapper_is_refused_by_its_configuration(config: dict[str, Any]) -> None:
    reason = checkpoint_refusal({"model_type": "llava", **config})
    assert reason is not None and "wraps a quantised text model (llava)" in reason and ";" in reason
    original = original_refusal(config)
    assert original is not None and "quantised already, by gptq" in original and "recipe: given" not in original
    dense = {name: value for name, value in config.items() if name != "quantization_config"} | {"text_config": {}}
    assert checkpoint_refusal(dense) is None and original_refusal(dense) is None


@pytest.mark.parametrize("own", [{}, {"quantization_config": {"group_size": 64, "bits": 4}}])
def test_mlx_is_known_by_its_key(own: dict[str, Any]) -> None:
    config = {"model_type": "llama", "quantization": {"group_size": 64, "bits": 4}, **own}
    reason, original = checkpoint_refusal(config), original_refusal(config)
    assert reason is not None and "is stored as MLX, which is not read; take a GGUF file" in reason
    assert original is not None and "quantised already, by mlx" in original
    assert checkpoint_refusal({**config, "quantization_config": GPTQ}) is None


@pytest.mark.parametrize(
    "config, message",
    [
        ([], "has a config.json that is no JSON object; fetch it again"),
        ({"quantization_config": "gptq"}, "has a `quantization_config` in its config.json that is no JSON object"),
        ({"text_config": {"quantization_config": []}}, "has a `quantization_config` in its config.json that is no"),
        ({"transformers_weights": "other.safetensors"}, "names a file of weights in its config.json"),
    ],
)
def test_what_no_model_can_have(config: Any, message: str) -> None:
    for reason in (checkpoint_refusal(config), original_refusal(config)):
        assert reason is not None and message in reason


def test_measured_but_not_patched() -> None:
    reason = patch_refusal({**CT, "transform_config": {"config_groups": {"u": {}}}})
    assert reason is not None and "SpinQuant" in reason

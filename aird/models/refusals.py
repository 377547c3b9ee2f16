"""The models and ready-made checkpoints that are refused, by name, and what would help.

Judged by the `quantization_config` of a config.json alone, so that the workflow can say it while it is parsed;
docs/checkpoints.md shows the same table, and what is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aird.models.config_json import config_refusal
from aird.models.format import CONVERT, format_of

ADAPTER = "adapter_config.json"
# What is wrong with a model's folder that holds one.
ADAPTER_INSIDE = (
    f"holds an adapter beside the model ({ADAPTER}), which Transformers puts on it and no other program does; merge it "
    "into the weights, or move it out of the folder (`aird check --patch` and `aird evaluate --adapter` take it there)"
)

# By `model_type`: what llama.cpp's converter writes and Transformers reads back. A conversion compares every weight.
GGUF_MODELS = (
    "falcon",
    "gemma2",
    "gemma3_text",
    "llama",
    "mistral",
    "nemotron",
    "phi3",
    "qwen2",
    "qwen3",
    "stablelm",
    "starcoder2",
)

# By `quant_method`: what the format is called, and what would help.
REFUSED = {
    "aqlm": ("AQLM", CONVERT),
    "auto-round": ("AutoRound's own format", "export it with AutoRound's format auto_gptq or llm_compressor"),
    "bitnet": ("BitNet", "take its dense checkpoint"),
    "eetq": ("EETQ", CONVERT),
    "exl2": ("ExLlamaV2", CONVERT),
    "exl3": ("ExLlamaV3", CONVERT),
    "fbgemm_fp8": ("FBGEMM FP8", CONVERT),
    "higgs": ("HIGGS", CONVERT),
    "hqq": ("HQQ", CONVERT),
    "mlx": ("MLX", "take a GGUF file of the model, or a checkpoint in compressed-tensors, GPTQ or AWQ"),
    "modelopt": ("NVIDIA ModelOpt", "convert it with compressed-tensors' ModelOptNvfp4Converter"),
    "mxfp4": ("MXFP4 of fused experts (gpt-oss)", "mixtures of experts in it are not read; take a dense model"),
    "quanto": ("Quanto", CONVERT),
    "quark": ("AMD Quark", CONVERT),
    "quip": ("QuIP#", CONVERT),
    "spqr": ("SpQR", CONVERT),
    "torchao": ("torchao", CONVERT),
    "vptq": ("VPTQ", CONVERT),
}


def refusal(quantisation: Mapping[str, Any] | None) -> str | None:
    """Return why a checkpoint cannot be read, and what would help; None for one that can.

    Args:
        quantisation: the `quantization_config` of its config.json; None for a dense checkpoint.
    """
    if quantisation is None:
        return None
    method = quantisation.get("quant_method")
    found = format_of(quantisation)
    if found is not None:
        return found.refusal(quantisation)
    if method in REFUSED:
        name, help_ = REFUSED[method]
        return f"is stored as {name}, which is not read; {help_}"
    return f"is quantised by {method or 'an unnamed method'}, which is not known; {CONVERT}"


def checkpoint_refusal(config: Mapping[str, Any]) -> str | None:
    """Return why a checkpoint cannot be read, as `refusal`, which knows no wrappers of vision and language.

    Args:
        config: its config.json.
    """
    if reason := config_refusal(config):
        return reason
    quantisation = _quantisation(config)
    if quantisation is not None and _wraps(config):
        return (
            f"wraps a quantised text model ({config.get('model_type')}), which cannot be taken out; take the "
            "unquantised wrapper, or a quantised form of the text model alone, as this project's import writes it"
        )
    return refusal(quantisation)


def _quantisation(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the `quantization_config` of a config.json, which a wrapper may keep with its text model's.

    MLX writes it without a `quant_method`, or under `quantization` alone.
    """
    inner = config.get("text_config")
    own: Mapping[str, Any] | None = config.get("quantization_config")
    mlx = config.get("quantization")
    if isinstance(mlx, Mapping) and "bits" in mlx and "quant_method" not in (own or {}):
        return {**mlx, "quant_method": "mlx"}
    return own or (inner.get("quantization_config") if isinstance(inner, Mapping) else None)


def _wraps(config: Mapping[str, Any]) -> bool:
    return any(isinstance(config.get(part), Mapping) for part in ("text_config", "vision_config"))


def original_refusal(config: Mapping[str, Any]) -> str | None:
    """Return why a model cannot be the original of a grid, and what would help; None for one that can.

    Args:
        config: its config.json.
    """
    if reason := config_refusal(config):
        return f"the model {reason}"
    quantisation = _quantisation(config)
    if quantisation is None:
        return None
    given = "" if checkpoint_refusal(config) else "; a quantised checkpoint is a compression of it, by recipe: given"
    method = quantisation.get("quant_method") or "an unnamed method"
    return f"the model is quantised already, by {method}; name the unquantised original{given}"


def patch_refusal(quantisation: Mapping[str, Any] | None) -> str | None:
    """Return why a checkpoint that can be served cannot be patched; None for one that can."""
    found = format_of(quantisation)
    return None if found is None or quantisation is None else found.patch_refusal(quantisation)

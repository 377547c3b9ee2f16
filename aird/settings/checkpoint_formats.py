"""The formats of ready-made checkpoints: what is refused, by name, and what would help.

Judged by the `quantization_config` of a config.json alone, so that the workflow can say it while it is parsed;
docs/checkpoints.md shows the same table, and what is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

# How many experts a mixture has, by the names that config.json files have for it.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")

PACKINGS = ("pack-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized")

_CONVERT = "convert the original with llm-compressor, which writes compressed-tensors"
# By `quant_method`: what the format is called, and what would help.
REFUSED = {
    "aqlm": ("AQLM", _CONVERT),
    "auto-round": ("AutoRound's own format", "export it with AutoRound's format auto_gptq or llm_compressor"),
    "bitnet": ("BitNet", "take its dense checkpoint"),
    "eetq": ("EETQ", _CONVERT),
    "exl2": ("ExLlamaV2", _CONVERT),
    "exl3": ("ExLlamaV3", _CONVERT),
    "fbgemm_fp8": ("FBGEMM FP8", _CONVERT),
    "higgs": ("HIGGS", _CONVERT),
    "hqq": ("HQQ", _CONVERT),
    "mlx": ("MLX", "take a GGUF file of the model, or a checkpoint in compressed-tensors, GPTQ or AWQ"),
    "modelopt": ("NVIDIA ModelOpt", "convert it with compressed-tensors' ModelOptNvfp4Converter"),
    "mxfp4": ("MXFP4 of fused experts (gpt-oss)", "mixtures of experts in it are not read; take a dense model"),
    "quanto": ("Quanto", _CONVERT),
    "quark": ("AMD Quark", _CONVERT),
    "quip": ("QuIP#", _CONVERT),
    "spqr": ("SpQR", _CONVERT),
    "torchao": ("torchao", _CONVERT),
    "vptq": ("VPTQ", _CONVERT),
}


def refusal(quantisation: Mapping[str, Any] | None) -> str | None:
    """Return why a checkpoint cannot be read, and what would help; None for one that can.

    Args:
        quantisation: the `quantization_config` of its config.json; None for a dense checkpoint.
    """
    if quantisation is None:
        return None
    method = quantisation.get("quant_method")
    judge = {
        "compressed-tensors": _compressed_tensors,
        "gptq": _gptq,
        "awq": _awq,
        "fp8": _fp8,
        "bitsandbytes": _bitsandbytes,
    }
    if method in judge:
        return judge[method](quantisation)
    if method in REFUSED:
        name, help_ = REFUSED[method]
        return f"is stored as {name}, which is not read; {help_}"
    return f"is quantised by {method or 'an unnamed method'}, which is not known; {_CONVERT}"


def config_refusal(config: Any) -> str | None:
    """Return why no model can have this configuration, an original or not, and what would help; None for one that can.

    Args:
        config: the content of its config.json.
    """
    if not isinstance(config, Mapping):
        return "has a config.json that is no JSON object; fetch it again"
    for values in (config, config.get("text_config")):
        if not isinstance(values, Mapping):
            continue
        if values.get("transformers_weights") is not None:
            return (
                "names a file of weights in its config.json (`transformers_weights`), which Transformers reads and no "
                "other program does; take the key out, and leave the model's own weights alone in the folder"
            )
        if not isinstance(values.get("quantization_config"), Mapping | None):
            return "has a `quantization_config` in its config.json that is no JSON object; fetch it again"
    return None


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


def experts_of(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return under which name a config.json says how many experts a mixture has, and how many; None for no mixture."""
    text = config.get("text_config", config)
    return next(((key, text[key]) for key in EXPERTS if isinstance(text.get(key), int) and text[key] > 1), None)


def patch_refusal(quantisation: Mapping[str, Any] | None) -> str | None:
    """Return why a checkpoint that can be served cannot be patched; None for one that can."""
    if quantisation is not None and quantisation.get("transform_config"):
        return (
            "its matrices are stored rotated (transform_config: SpinQuant or QuIP), so an edit along the original's "
            "direction would mean another one in them"
        )
    return None


def orders_columns(group: Any) -> bool:
    """Return whether one of compressed-tensors' `config_groups` has columns in the order of `weight_g_idx`.

    Newer versions of compressed-tensors, and so Transformers, no longer read what older ones wrote so.
    """
    weights = group.get("weights") if isinstance(group, Mapping) else None
    return (weights or {}).get("actorder") in ("group", "dynamic", True)


def _compressed_tensors(quantisation: Mapping[str, Any]) -> str | None:
    sparse = (quantisation.get("sparsity_config") or {}).get("format", "dense")
    groups = [group for group in (quantisation.get("config_groups") or {}).values() if isinstance(group, Mapping)]
    packings = {group.get("format") for group in groups} | {quantisation.get("format"), sparse}
    unread = sorted(str(packing) for packing in packings - {None, "dense", "mixed-precision", *PACKINGS})
    if unread:
        return f"is packed as {', '.join(unread)}, which is not read; save it uncompressed, or as {PACKINGS[0]}"
    if quantisation.get("kv_cache_scheme"):  # vLLM would follow it, and Transformers not
        return (
            "comes with scales of a quantised key/value cache (`kv_cache_scheme`), which are not read; quantise "
            "without them, and give the compression a key_value_cache_dtype"
        )
    return None


def gptq_layout(quantisation: Mapping[str, Any]) -> str:
    """Return how a GPTQ checkpoint is packed: "gptq", zero points less one, or "gptq_v2"; by either of its two keys."""
    return quantisation.get("checkpoint_format") or quantisation.get("format") or "gptq"


def _gptq(quantisation: Mapping[str, Any]) -> str | None:
    bits, layout = quantisation.get("bits"), gptq_layout(quantisation)
    if bits not in (2, 3, 4, 8):
        return f"is GPTQ with {bits} bits, which is not read; take one with 2, 3, 4 or 8"
    if layout not in ("gptq", "gptq_v2"):
        return f"is GPTQ packed for {layout}, which is not read; save it with format gptq"
    if quantisation.get("dynamic"):
        return "is GPTQ with other settings for some modules (`dynamic`), which is not read; quantise all alike"
    return None


def _awq(quantisation: Mapping[str, Any]) -> str | None:
    bits = quantisation.get("bits", quantisation.get("w_bit", 4))
    layout = str(quantisation.get("version") or "gemm").lower()
    if bits != 4:
        return f"is AWQ with {bits} bits, which is not read; take one with 4"
    if layout != "gemm":
        return f"is AWQ packed for {layout}, which is not read; save it with version gemm"
    if not quantisation.get("zero_point", True):
        return "is AWQ without zero points, which is not read; save it with zero_point: true"
    return None


def _fp8(quantisation: Mapping[str, Any]) -> str | None:
    if not quantisation.get("weight_block_size"):
        return f"is FP8 without blocks of weights (AutoFP8), which is not read; {_CONVERT}"
    if quantisation.get("activation_scheme", "dynamic") != "dynamic":
        return f"is FP8 in blocks with stored scales of activations, which is not read; {_CONVERT}"
    return None


def _bitsandbytes(quantisation: Mapping[str, Any]) -> str | None:
    four_bits = quantisation.get("load_in_4bit") or quantisation.get("_load_in_4bit")
    storage = quantisation.get("bnb_4bit_quant_storage", "uint8")
    if four_bits and storage != "uint8":
        return f"is 4-bit bitsandbytes kept in {storage}, which is not read; save it with bnb_4bit_quant_storage uint8"
    return None

"""What a model's config.json says, whatever the model is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# How many experts a mixture has, by the names that config.json files have for it.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


Config = Mapping[str, Any]  # a model's config.json


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


def experts_of(config: Config) -> tuple[str, int] | None:
    """Return under which name a config.json says how many experts a mixture has, and how many; None for no mixture."""
    text = config.get("text_config", config)
    return next(((key, text[key]) for key in EXPERTS if isinstance(text.get(key), int) and text[key] > 1), None)

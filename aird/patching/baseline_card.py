"""The model card of a baseline: an ordinary LoRA, or a system prompt, beside which AIRD's patches are measured."""

from __future__ import annotations

from typing import Any

import yaml

from aird.patching.model_card import METHODS, TAGS
from aird.settings.patches import LoRA, SystemPrompt

LIMITS = (
    "## Limits\n\nA baseline for comparison. Measure refusal, over-refusal and utility on prompts of your own use "
    "before you rely on it.\n"
)


def baseline_card(settings: LoRA | SystemPrompt, base: str, licence: str | None) -> str:
    """Return the card of a baseline.

    Args:
        settings: the patch.
        base: name of the compressed checkpoint.
        licence: the base's licence; None leaves it out.
    """
    metadata: dict[str, Any] = {
        "base_model": base,
        "base_model_relation": "adapter",
        "library_name": "peft" if isinstance(settings, LoRA) else "transformers",
        "pipeline_tag": "text-generation",
        **({"license": licence} if licence else {}),
        "tags": [*TAGS, "baseline"],
    }
    values = settings.model_dump(exclude={"compressions", "method"})
    facts = {"method": f"`{settings.method}`: {METHODS[settings.method]}"} | {
        name.replace("_", " "): f"`{value}`" for name, value in values.items()
    }
    table = "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    return (
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n"
        f"# Baseline: {METHODS[settings.method].split(':')[0]}\n\n"
        f"Made for `{base}`, a compressed model with damaged refusal.\n\n## What was done\n\n{table}\n"
        f"## How to use it\n\n{_use(settings, base)}\n{LIMITS}"
    )


def _use(settings: LoRA | SystemPrompt, base: str) -> str:
    if isinstance(settings, SystemPrompt):
        return "Put the text of `system_prompt.txt` in front of every conversation, as its system message.\n"
    return (
        f"```bash\nvllm serve {base} --enable-lora --max-lora-rank {settings.rank} "
        "--lora-modules lora=path/to/this/folder\n```\n"
    )

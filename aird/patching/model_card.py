"""The model card of a patch: what was done and how to load it, with the hub's standard metadata.

The adapter folder and the merged checkpoint carry it as README.md. Numbers are known only after the
evaluation; aird/reporting/evaluated_card.py adds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

TAGS = ("aird", "refusal", "safety", "model-compression")
METHODS = {
    "scale": "each edited matrix writes more of its own output along the direction: row = alpha r^T W_c",
    "project": "each edited matrix writes the original matrix's output along the direction: "
    "row = alpha r^T (W_o - W_c)",
    "fit": "ridge regression on harmful and harmless instructions, module by module, so that the compressed model "
    "writes along the direction what the original wrote",
    "calibrate": "rows learnt from the original's replies (KL divergence of the next token), with a strength chosen on "
    "validation prompts",
    "lora": "an ordinary LoRA tuned on refusals and on the compressed model's own harmless answers: a baseline",
    "system_prompt": "a system prompt that asks for refusals: a baseline; no weight is changed",
}


def patch_card(record: Mapping[str, Any], base: str, licence: str | None, merged: bool = False) -> str:
    """Return the card of a patch.

    Args:
        record: what is written about the patch (`statistics.json`).
        base: hub id, folder or name of the compressed checkpoint.
        licence: the base's licence; None leaves it out.
        merged: the card of the merged checkpoint instead of the adapter's.
    """
    metadata: dict[str, Any] = {
        "base_model": base,
        "base_model_relation": "finetune" if merged else "adapter",
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-generation",
        **({"license": licence} if licence else {}),
        "tags": [*TAGS, *([] if merged else ["lora", f"base_model:adapter:{base}"])],
    }
    settings, direction = record["settings"], record["direction"]
    kind = {"original": "the original model", "own": "the compressed model itself", "random": "none: a random control"}
    facts = {
        "method": f"`{settings['method']}`: {METHODS.get(settings['method'], 'see the settings')}",
        "settings": ", ".join(f"`{name}: {value}`" for name, value in settings.items() if value is not None),
        **_chosen_strength(record.get("calibration")),
        "direction of": kind.get(settings.get("direction", "original"), settings.get("direction")),
        "its site": f"input of block {direction['layer']}, post-instruction token {direction['position']}",
        "its SHA-256": f"`{direction['sha256']}` (float64 bytes of the unit vector)",
        "edited blocks": ", ".join(map(str, record["blocks"])),
        "edited matrices": f"{len(record['edits'])}: {_modules(record['edits'])}",
        **{f"SHA-256 of `{name}`": f"`{value}`" for name, value in record.get("weights", {}).items()},
    }
    text = (
        f"# {'A compressed model with repaired refusal' if merged else 'AIRD adapter: repaired refusal'}\n\n"
        f"Compression damaged the refusal of harmful requests in `{base}`. This "
        f"{'checkpoint has' if merged else 'is'} a rank-1 edit W' = W + r · row of matrices that write to the "
        "residual stream, with r the unit refusal direction (Arditi et al., arXiv 2406.11717; the repair is named by "
        f"arXiv 2504.04215). {_untouched(merged)}\n\n"
        "## What was done\n\n| | |\n|---|---|\n"
        + "".join(f"| {name} | {value} |\n" for name, value in facts.items())
        + f"\n## How to load it\n\n{_loading(base, merged)}\n"
        "## Limits\n\n"
        "It restores refusals, it does not make a model safe: measure refusal, over-refusal and utility on prompts of "
        "your own use before you rely on it (`aird evaluate`).\n"
    )
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n{text}"


def _chosen_strength(calibration: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the fact that a calibration adds."""
    if calibration is None:
        return {}
    strength = calibration["strength"]
    alone = "; refusal of validation prompts was not lost, so nothing is changed"
    return {"strength": f"{strength}{'' if strength else alone}"}


def _modules(edits: Sequence[Mapping[str, Any]]) -> str:
    names = [f"`{edit['module']}`" for edit in edits]
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:2])} … {names[-1]}"


def _untouched(merged: bool) -> str:
    if merged:
        return "Every tensor that is not listed below is that of the base, bit by bit."
    return "The base stays bit-identical; the adapter is a LoRA of rank 1."


def _loading(base: str, merged: bool) -> str:
    if merged:
        return (
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n'
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n```\n\n'
            "```bash\nvllm serve path/to/this/folder\n```\n"
        )
    return (
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        "base(**base.dummy_inputs)  # only where compressed-tensors packed the base: this unpacks it\n"
        'model = PeftModel.from_pretrained(base, "path/to/this/folder")\n```\n\n'
        f"```bash\nvllm serve {base} --enable-lora --max-lora-rank 1 --lora-modules aird=path/to/this/folder\n```\n\n"
        "then ask for the model `aird`.\n"
    )

"""A patch's model card with what was measured: refusal before and after, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RATES = {
    "refusal of harmful prompts, %": "refusal",
    "ASR by Wei's judge, %": "asr_wei",
    "degenerate, %": "degenerate",
    "over-refusal of harmless prompts, %": "over_refusal",
}


def evaluated_card(card: str, scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return a card with a section of numbers in front of its limits.

    Args:
        card: the card as the adapter folder has it.
        scores: suite to {"original", "compressed", "patched"} to the record of the scores node.
    """
    sections = [_suite(name, cells) for name, cells in scores.items()]
    numbers = "## Numbers\n\nShare of prompts, greedy decoding; in parentheses the 95% Wilson interval.\n\n"
    return card.replace("## Limits\n", numbers + "\n".join(sections) + "\n## Limits\n", 1)


def _suite(name: str, scores: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"Suite `{name}`:\n", f"| | {' | '.join(scores)} |", f"|---{'|---' * len(scores)}|"]
    for title, rate in RATES.items():
        lines.append(f"| {title} | {' | '.join(_rate(found['rates'][rate]) for found in scores.values())} |")
    counts = [f"{found['rates']['refusal']['n']}, {found['rates']['over_refusal']['n']}" for found in scores.values()]
    lines.append(f"| n, harmful and harmless | {' | '.join(counts)} |")
    lines.append(f"| perplexity of the original's answers | {' | '.join(map(_perplexity, scores.values()))} |")
    for task in next(iter(scores.values()))["tasks"]:
        lines.append(f"| {task}, accuracy, % | {' | '.join(_accuracy(found, task) for found in scores.values())} |")
    return "\n".join(lines) + "\n"


def _rate(found: Mapping[str, float]) -> str:
    return f"{100 * found['rate']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def _perplexity(score: Mapping[str, Any]) -> str:
    found = score["perplexity"]
    return f"{found['perplexity']:.2f} ({found['low']:.2f} to {found['high']:.2f})" if found else "-"


def _accuracy(score: Mapping[str, Any], task: str) -> str:
    metrics = score["tasks"].get(task, {})
    value = metrics.get("acc", metrics.get("acc_norm"))
    return "-" if value is None else f"{100 * value:.1f}"

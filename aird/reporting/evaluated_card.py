"""A patch's model card with what was measured: refusal before and after, with intervals.

The card itself is written with the patch (aird/patching/model_card.py); its numbers are known after the evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aird.evaluation.judges.registry import TABULATED
from aird.evaluation.utility import question_metric
from aird.reporting.names import engines_in_words

Score = Mapping[str, Any]

RATES = {
    "refusal of harmful prompts, %": "refusal",
    **{f"ASR by {judge.title}'s judge, %": f"asr_{judge.name}" for judge in TABULATED},
    "degenerate, %": "degenerate",
    "over-refusal of harmless prompts, %": "over_refusal",
}


def evaluated_card(card: str, scores: Mapping[str, Mapping[str, Score]]) -> str:
    """Return a card with a section of numbers in front of its limits.

    Args:
        card: the card as the adapter folder has it.
        scores: suite to {"original", "compressed", "patched"} to the record of the scores node.
    """
    sections = [_suite(name, cells) for name, cells in scores.items()]
    numbers = "## Numbers\n\nShare of prompts, greedy decoding; in parentheses the 95% Wilson interval.\n\n"
    return card.replace("## Limits\n", numbers + "\n".join(sections) + "\n## Limits\n", 1)


def _suite(name: str, scores: Mapping[str, Score]) -> str:
    rows = {title: [_rate(score["rates"][rate]) for score in scores.values()] for title, rate in RATES.items()}
    rows["served as"] = [score["served_as"] for score in scores.values()]
    rows["n, harmful and harmless"] = [
        ", ".join(str(score["rates"][rate]["n"]) for rate in ("refusal", "over_refusal")) for score in scores.values()
    ]
    rows["perplexity of the original's answers"] = [_perplexity(score) for score in scores.values()]
    for task, measured in next(iter(scores.values()))["questions"].items():
        if metric := question_metric(measured):
            shares = [_mean(score["questions"].get(task, {}).get(metric)) for score in scores.values()]
            rows[f"{task}, {metric}, %"] = shares
    if mixed := engines_in_words(*(_engine(scores[cell]) for cell in ("compressed", "original"))):
        rows["engine"] = [str(_engine(score)) for score in scores.values()]
        mixed = f"\nOf the compressed model: {mixed}\n"
    lines = [f"Suite `{name}`:\n", f"| | {' | '.join(scores)} |", f"|---{'|---' * len(scores)}|"]
    return "\n".join([*lines, *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows.items())]) + f"\n{mixed}"


def _engine(score: Score) -> str | None:
    return (score.get("engine") or {}).get("name")


def _rate(rate: Mapping[str, float]) -> str:
    return f"{100 * rate['rate']:.1f} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"


def _perplexity(score: Score) -> str:
    measured = score["perplexity"]
    return f"{measured['perplexity']:.2f} ({measured['low']:.2f} to {measured['high']:.2f})" if measured else "-"


def _mean(values: Sequence[float] | None) -> str:
    return f"{100 * sum(values) / len(values):.1f}" if values else "-"

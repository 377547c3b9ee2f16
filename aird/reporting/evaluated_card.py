"""A patch's model card with what was measured: refusal before and after, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aird.evaluation.judge import titles
from aird.evaluation.utility import question_metric
from aird.patching.model_card import patch_card
from aird.reporting.names import engines_in_words
from aird.reporting.records import Measured, Rate, Record

Scores = Mapping[str, Mapping[str, Measured]]  # by suite and cell


def evaluated_card(record: Record, scores: Scores) -> str:
    """Return the card of a patch with its numbers.

    Args:
        record: the patch's `statistics.json`.
        scores: as of `numbers_section`.
    """
    return patch_card(record, record["base"], record["licence"], sections=[numbers_section(scores)])


def numbers_section(scores: Scores) -> str:
    """Return what was measured of a patch, as a section of its card.

    Args:
        scores: suite to {"original", "compressed", "patched"} to the record of the scores node.
    """
    sections = [_suite(name, cells) for name, cells in scores.items()]
    numbers = "## Numbers\n\nShare of prompts, greedy decoding; in parentheses the 95% Wilson interval.\n\n"
    return numbers + "\n".join(sections)


def published_numbers(record: Record, scores: Scores) -> dict[str, object]:
    """Return what `aird push --numbers` reads: of which weights the numbers are, and what the card shows of them."""
    suites = {
        suite: {
            cell: {name: value for name, value in score.items() if name in Measured.__annotations__}
            for cell, score in cells.items()
        }
        for suite, cells in scores.items()
    }
    return {"weights": record["weights"], "suites": suites}


def _suite(name: str, scores: Mapping[str, Measured]) -> str:
    rates = {
        "refusal of harmful prompts, %": "refusal",
        **{f"ASR by {title}'s judge, %": rate for rate, title in titles(next(iter(scores.values()))["rates"]).items()},
        "degenerate, %": "degenerate",
        "over-refusal of harmless prompts, %": "over_refusal",
    }
    rows = {title: [_rate(score["rates"].get(rate)) for score in scores.values()] for title, rate in rates.items()}
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


def _engine(score: Measured) -> str | None:
    return (score.get("engine") or {}).get("name")


def _rate(rate: Rate | None) -> str:
    return "" if rate is None else f"{100 * rate['rate']:.1f} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"


def _perplexity(score: Measured) -> str:
    measured = score["perplexity"]
    return f"{measured['perplexity']:.2f} ({measured['low']:.2f} to {measured['high']:.2f})" if measured else "-"


def _mean(values: Sequence[float] | None) -> str:
    return f"{100 * sum(values) / len(values):.1f}" if values else "-"

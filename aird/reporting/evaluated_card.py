"""A patch's model card with what was measured: refusal and sensitivity before and after, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from aird.evaluation.judge import titles
from aird.evaluation.kind_of_loss import kind_of_loss, restored, with_interval
from aird.evaluation.utility import question_metric
from aird.patching.model_card import patch_card
from aird.prompts.sets import CLASSES
from aird.reporting.names import engines_in_words
from aird.reporting.records import Measured, Rate, Record, Score, refused
from aird.support.statistics import Estimate, PairedComparison

Scores = Mapping[str, Mapping[str, Measured]]  # by suite and cell


# JSON keeps no order of keys.
CELLS = ("original", "compressed", "patched")
TOLD_APART = (
    "d' of refusals",
    "change of d'",
    "share of the lost d' that is restored",
    "AUC of first tokens",
    "change of the AUC",
    "share of the lost AUC that is restored",
    "compared with the original",
    *(f"flips of {kind} prompts" for kind in CLASSES),
)


def evaluated_card(record: Record, scores: Mapping[str, Mapping[str, Score]]) -> str:
    """Return the card of a patch with its numbers.

    Args:
        record: the patch's `statistics.json`.
        scores: as of `published_numbers`.
    """
    return patch_card(record, record["base"], record["licence"], sections=[numbers_section(_published(scores))])


def numbers_section(scores: Scores) -> str:
    """Return what was measured of a patch, as a section of its card.

    Args:
        scores: suite to {"original", "compressed", "patched"} to the record of the scores node.
    """
    sections = [_suite(name, cells) for name, cells in scores.items()]
    numbers = (
        "## Numbers\n\nShare of prompts, greedy decoding; in parentheses the 95% interval. d' and AUC say how well "
        "harmful prompts are told from harmless ones, however readily the model refuses; their changes are paired.\n\n"
    )
    return numbers + "\n".join(sections)


def published_numbers(record: Record, scores: Mapping[str, Mapping[str, Score]]) -> dict[str, object]:
    """Return what `aird push --numbers` reads: of which weights the numbers are, and what the card shows of them.

    Args:
        record: the patch's `statistics.json`.
        scores: suite to {"original", "compressed", "patched"} to the record of the scores node.
    """
    return {"weights": record["weights"], "suites": _published(scores)}


def _published(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, Measured]]:
    return {
        suite: {
            cell: cast(
                Measured,
                {name: value for name, value in score.items() if name in Measured.__annotations__}
                | {"told_apart": _told_apart(cells, cell)},
            )
            for cell, score in cells.items()
        }
        for suite, cells in scores.items()
    }


def _told_apart(cells: Mapping[str, Score], cell: str) -> dict[str, str]:
    """Return how well a cell tells harmful from harmless prompts, and what flipped against the original."""
    original, labels = cells["original"]["labels"], cells[cell]["labels"]
    loss = kind_of_loss(original, labels)
    if loss is None:
        return {}
    facts = {"d' of refusals": loss.sensitivity.after, "AUC of first tokens": loss.area and loss.area.after}
    if cell == "original":
        return {title: _estimate(value) for title, value in facts.items()}
    facts |= {"change of d'": loss.sensitivity.change, "change of the AUC": loss.area and loss.area.change}
    told = {title: _estimate(value) for title, value in facts.items()}
    if cell == "patched":
        back = restored(original, cells["compressed"]["labels"], labels)
        shares = {"lost d'": back.sensitivity, "lost AUC": back.area}
        told |= {f"share of the {title} that is restored": _estimate(value) for title, value in shares.items()}
    told["compared with the original"] = loss.sentence()
    for kind in CLASSES:
        flips = PairedComparison.of(*(refused(cells[name], kind) for name in ("original", cell)))
        told[f"flips of {kind} prompts"] = f"{flips.lost} no longer refused, {flips.gained} newly"
    return told


def _suite(name: str, scores: Mapping[str, Measured]) -> str:
    scores = {cell: scores[cell] for cell in CELLS}
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
    told = [score.get("told_apart", {}) for score in scores.values()]
    rows |= {title: [facts.get(title, "") for facts in told] for title in TOLD_APART if any(title in f for f in told)}
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


def _estimate(estimate: Estimate | None) -> str:
    return "-" if estimate is None else with_interval(estimate)


def _mean(values: Sequence[float] | None) -> str:
    return f"{100 * sum(values) / len(values):.1f}" if values else "-"

"""Refusal by the prompt set in which a prompt was first read, where a suite's prompts come from several."""

from __future__ import annotations

from collections.abc import Iterator

from aird.prompts.sets import CLASSES
from aird.reporting.table import SUITE_AND_CELL, Column, Row, Table, each, values
from aird.support.statistics import wilson_interval


def categories(score: Row) -> Iterator[Row]:
    """Yield the refusal of each origin of a kind of prompts that has several."""
    for kind in CLASSES:
        labels = [row for row in score["labels"] if row["kind"] == kind]
        origins = list(dict.fromkeys(row.get("origin") for row in labels))
        for origin in origins if len(origins) > 1 else ():
            answers = [row["refused"] for row in labels if row.get("origin") == origin]
            low, high = wilson_interval(sum(answers), len(answers))
            rate = {"refusal": sum(answers) / len(answers), "low": low, "high": high}
            yield {"kind": kind, "origin": origin, "n": len(answers), **rate}


TABLE = Table(
    place=80,
    says=__doc__,
    records=("scores",),
    rows=each("scores", categories),
    columns=[
        *SUITE_AND_CELL,
        Column("kind", says="`harmful` or `harmless`"),
        Column("origin", says="the prompt set"),
        Column("n", says="prompts"),
        *values("refusal low high", says="share that is refused (Wilson)"),
    ],
)

"""Every metric of every lm-eval task."""

from __future__ import annotations

from collections.abc import Iterator

from aird.reporting.table import SUITE_AND_CELL, Row, Table, each, values


def metrics(score: Row) -> Iterator[Row]:
    """Yield every metric of every task."""
    for task, measured in score["tasks"].items():
        yield from ({"task": task, "metric": metric, "value": value} for metric, value in measured.items())


TABLE = Table(
    place=40,
    says=__doc__,
    records=("scores",),
    rows=each("scores", metrics),
    columns=[*SUITE_AND_CELL, *values("task metric value", says="lm-eval's names; `n` is the number of documents")],
)

"""Every rate, one per row."""

from __future__ import annotations

from aird.reporting.table import SUITE_AND_CELL, Column, Table, each, values

TABLE = Table(
    place=30,
    says=__doc__,
    records=("scores",),
    rows=each(
        "scores", lambda score: ({**rate, "rate": name, "value": rate["rate"]} for name, rate in score["rates"].items())
    ),
    columns=[
        *SUITE_AND_CELL,
        Column("rate", says="its name"),
        Column("n", says="prompts"),
        *values("value low high", says="with its Wilson interval"),
    ],
)

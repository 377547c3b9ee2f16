"""Scores of every candidate direction."""

from __future__ import annotations

from aird.reporting.table import PAIR, Table, each, values

TABLE = Table(
    place=130,
    says=__doc__,
    records=("candidates",),
    rows=each("candidates", lambda frame: frame.to_dict("records")),
    columns=[
        *PAIR,
        *values("layer position"),
        *values("induce kl bypass", says="empty where no filter could make it matter"),
    ],
)

"""Comparison with the original at every site."""

from __future__ import annotations

from aird.reporting.table import PAIR, Table, each, values

TABLE = Table(
    place=120,
    says=__doc__,
    records=("comparisons",),
    rows=each("comparisons", lambda comparison: comparison["sites"]),
    columns=[
        *PAIR,
        *values("layer position"),
        *values("cosine norm_ratio", says="empty where the original has no difference"),
    ],
)

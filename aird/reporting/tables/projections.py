"""Activations along both directions."""

from __future__ import annotations

from aird.reporting.table import PAIR, Table, each, values

TABLE = Table(
    place=110,
    says=__doc__,
    records=("comparisons",),
    rows=each("comparisons", lambda comparison: comparison["projections"]),
    columns=[
        *PAIR,
        *values("states_of kind", says="whose activations, of which prompts"),
        *values("direction layer position", says="`original` or `own`, and its site"),
        *values("n mean standard_deviation", says="over the prompts"),
    ],
)

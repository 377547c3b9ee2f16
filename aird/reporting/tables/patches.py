"""One row per edited matrix."""

from __future__ import annotations

from collections.abc import Iterator

from aird.reporting.table import CELL, Column, Row, Table, each, values


def edits(statistics: Row) -> Iterator[Row]:
    """Yield the edited matrices; only learnt columns have a cosine."""
    of_all = {"cosine_with_direction": None, "adapter_bytes": statistics["adapter_bytes"]}
    return ({**of_all, **edit} for edit in statistics["edits"])


TABLE = Table(
    place=140,
    says=__doc__,
    records=("patches",),
    rows=each("patches", edits),
    columns=[
        *CELL,
        Column("module"),
        Column("relative_change", says="Frobenius norm of the edit over that of the matrix"),
        *values("row_norm_before row_norm_after", says="norm of r^T W over that of the original's"),
        Column("cosine_with_direction", says="of a learnt column (`direction: free`) with the original's direction"),
        Column("adapter_bytes", says="size of the adapter"),
    ],
)

"""How the error of each compensated matrix lies. Made where a patch compensates it, one row per matrix."""

from __future__ import annotations

from collections.abc import Iterator

from aird.reporting.table import CELL, Column, Row, Table, each, values


def matrices(statistics: Row) -> Iterator[Row]:
    """Yield the matrices of a patch that compensates; none of any other patch."""
    for module, found in statistics.get("compensation", {}).items():
        token = next(iter(found["tokens"]), {"token": None, "position": None, "share": None})
        shares = {"first_share": found["shares"][0], "first_8_share": sum(found["shares"])}
        yield {"module": module, **shares, "left": found["left"], **token}


TABLE = Table(
    place=145,
    says=__doc__,
    records=("patches",),
    where="compensated",
    rows=each("patches", matrices),
    columns=[
        *CELL,
        Column("module"),
        *values(
            "first_share first_8_share",
            says="share of the error, weighted by the covariance of the inputs, that the first singular direction "
            "holds, and the first eight together",
        ),
        Column("left", says="share that the patch leaves at strength 1"),
        Column(
            "token",
            says="what carries most of the error along the first direction: one of the chat template's tokens, as the "
            "vocabulary writes it, or all of the instructions together (`prompt`), or of the replies (`reply`)",
        ),
        Column(
            "position",
            says="of that token in the template: from 0 in front of the instruction, to -1 behind it",
            dtype="Int64",
        ),
        Column("share", says="what it carries of the error along the first direction"),
    ],
)

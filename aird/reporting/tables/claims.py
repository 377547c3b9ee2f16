"""The paper's claims, judged ([claims.md](claims.md))."""

from __future__ import annotations

from collections.abc import Iterable

from aird.reporting.records import Records
from aird.reporting.table import Column, Row, Table, values


def rows(records: Records) -> Iterable[Row]:
    """Return the statements with their verdicts."""
    from aird.reporting.claims import Evidence, claims_table

    grid, present = records.grid, records.present
    evidence = Evidence(
        present["directions"],
        present["verifications"],
        present["comparisons"],
        records.scores,
        frozenset(grid["pruned"]),
        frozenset(grid["random"]),
        grid["controls"],
        grid["seed"],
        present["restorations"],
        present["examinations"],
        frozenset(grid.get("given", ())),
    )
    found: list[Row] = claims_table(evidence).to_dict("records")
    return found


TABLE = Table(
    place=20,
    says=__doc__,
    records=("scores", "directions", "verifications", "comparisons", "restorations", "examinations"),
    whole=True,
    rows=rows,
    columns=[
        *values("model suite compression patch", says="`all` in a row over all compressions"),
        *values("claim statement", says="C1 to C5, and the part of it"),
        Column("test", says="what was tested"),
        *values("estimate low high", says="effect and its 95% interval"),
        Column("n", says="prompts or compressions"),
        *values("p_value p_adjusted", says="before and after Holm's correction"),
        *values("verdict reason", says="holds, does not hold or undecided, and why"),
        Column(
            "needed",
            says="where undecided: the data that would decide it, computed from this run's rates "
            "([claims.md](claims.md#what-an-undecided-claim-needs)); else empty",
        ),
    ],
)

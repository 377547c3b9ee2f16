"""The paper's claims, judged ([claims.md](claims.md))."""

from __future__ import annotations

from collections.abc import Iterable

from aird.reporting.records import Records
from aird.reporting.table import Column, Row, Table, values


def rows(records: Records) -> Iterable[Row]:
    """Return the statements with their verdicts."""
    from aird.reporting.claims.all_claims import all_statements
    from aird.reporting.claims.evidence import Evidence

    return [statement.row() for statement in all_statements(Evidence.of(records))]


TABLE = Table(
    place=20,
    says=__doc__,
    records=("scores", "directions", "verifications", "comparisons", "restorations", "examinations"),
    whole=True,
    rows=rows,
    columns=[
        *values("model suite compression patch", says="`all` in a row over all compressions"),
        Column("control", says="the matched control that the patch is compared with; else empty"),
        *values("claim part statement", says="C1 to C5, the part of it by its name, and in words"),
        Column("test", says="what was tested"),
        *values("estimate low high", says="effect and its 95% interval"),
        Column("n", says="prompts, answers, questions or compressions; of a whole, its parts"),
        *values("p_value p_adjusted", says="before and after Holm's correction"),
        *values("verdict reason", says="holds, does not hold or undecided, and why"),
        Column(
            "needed",
            says="where undecided, the sample that would decide by this run's rates, if at most 10,000 "
            "([claims.md](claims.md#what-an-undecided-claim-needs))",
            dtype="Int64",
        ),
    ],
)

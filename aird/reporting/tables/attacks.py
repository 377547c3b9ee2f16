"""One row per attack and checkpoint, of suites with `attacks` ([attacks.md](attacks.md)).

The attack `none` is the harmful prompts as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from aird.reporting.judges import ALL_JUDGES, COHERENT, of_judge
from aird.reporting.table import SUITE_AND_CELL, Column, Row, Table, each, interval, values
from aird.settings.attacks import NO_ATTACK

AS_THERE = "as in `summary.csv`"
UNKNOWN = dict.fromkeys(("rate", "low", "high"))


def attacks(score: Row) -> Iterator[Row]:
    """Yield the rates under every attack, and without one; nothing where a suite has no attacks."""
    under = score.get("attacks")
    for attack, rates in ({NO_ATTACK: score["rates"], **under} if under else {}).items():
        judged = {f"asr_{name}": rates.get(f"asr_{name}", UNKNOWN) for name in ALL_JUDGES}
        others = {name: rates.get(name, UNKNOWN)["rate"] for name in (COHERENT, "degenerate")}
        yield {"attack": attack, "n": rates["refusal"]["n"], **judged, **others}


TABLE = Table(
    place=60,
    says=__doc__,
    records=("scores",),
    rows=each("scores", attacks),
    columns=[
        *SUITE_AND_CELL,
        Column("attack"),
        Column("n", says="attacked prompts"),
        *(
            column
            for name, judge in ALL_JUDGES.items()
            for column in of_judge(name, *interval(f"asr_{name}", f"asr_{name}", value="rate", says=AS_THERE))
        ),
        *values(f"{COHERENT} degenerate", says=AS_THERE),
    ],
)

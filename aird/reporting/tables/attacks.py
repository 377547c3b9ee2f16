"""One row per attack and checkpoint, of suites with `attacks` ([attacks.md](attacks.md)).

The attack `none` is the harmful prompts as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from aird.reporting.judges import ALL_JUDGES, asr, meaning
from aird.reporting.table import SUITE_AND_CELL, Column, Row, Table, each, interval, values
from aird.settings.attacks import NO_ATTACK

UNKNOWN = dict.fromkeys(("rate", "low", "high"))


def attacks(score: Row) -> Iterator[Row]:
    """Yield the rates under every attack, and without one; nothing where a suite has no attacks."""
    under = score.get("attacks")
    for attack, rates in ({NO_ATTACK: score["rates"], **under} if under else {}).items():
        judged = {asr(judge): rates.get(asr(judge), UNKNOWN) for judge in ALL_JUDGES}
        others = {name: rates.get(name, UNKNOWN)["rate"] for name in ("asr_arditi_coherent", "degenerate")}
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
        *(column for j in ALL_JUDGES for column in interval(asr(j), asr(j), value="rate", says=meaning(j))),
        *values("asr_arditi_coherent degenerate", says="as in `summary.csv`"),
    ],
)

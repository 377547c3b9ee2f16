"""Two judges on the same completions of harmful prompts, plain and attacked.

`by_hand` is a person who read some of them ([attacks.md](attacks.md#replies-read-by-hand)), and whose `neither` counts
as jailbroken, as `complied` does. Judges that grade take no part.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from aird.evaluation.hand_labels import BY_HAND, COMPLIED, NEITHER
from aird.evaluation.judge import judged
from aird.reporting.judges import DECIDING
from aird.reporting.records import Records
from aird.reporting.table import SUITE_AND_CELL, Column, Row, Table, named, values
from aird.reporting.verdicts import ALL


def rows(records: Records) -> Iterator[Row]:
    """Yield every pair of judges in every cell.

    A person reads a sample of all cells together, so with `by_hand` there is a row over all of them too: each reply
    that was read counts once there, however many checkpoints gave it.
    """
    pairs = list(itertools.combinations([*DECIDING, BY_HAND], 2))
    read: dict[str, dict[str, Row]] = {}
    for key, score in records.present["scores"].items():
        labels = judged(score["labels"])
        yield from ({**named(key), **row} for row in agreements(labels, pairs))
        if of_suite := {row["reply"]: row for row in labels if BY_HAND in row}:
            read.setdefault(key[3], {}).update(of_suite)
    by_hand = [pair for pair in pairs if BY_HAND in pair]
    for suite, replies in read.items():
        yield from ({**named((ALL, ALL, ALL, suite)), **row} for row in agreements(list(replies.values()), by_hand))


def agreements(labels: Sequence[Row], pairs: Iterable[tuple[str, str]]) -> Iterator[Row]:
    """Yield how each pair of judges agrees on the completions that both decided on, where there is one."""
    for one, other in pairs:
        names = (f"jailbroken_{one}", f"jailbroken_{other}")
        decided = [row for row in labels if all(row.get(name) is not None for name in names)]
        if n := len(decided):
            both = Counter(tuple(row[name] for name in names) for row in decided)
            same = (both[True, True] + both[False, False]) / n
            shares = [(both[True, True] + more) / n for more in (both[True, False], both[False, True])]
            chance = math.prod(shares) + math.prod(1 - share for share in shares)
            said = Counter(row[BY_HAND] for row in decided) if other == BY_HAND else None
            yield {
                "judge": one,
                "other": other,
                "n": n,
                "agreement": same,
                "kappa": (same - chance) / (1 - chance) if chance < 1 else None,
                "only_judge": both[True, False],
                "only_other": both[False, True],
                **{label: None if said is None else said[label] for label in (COMPLIED, NEITHER)},
            }


TABLE = Table(
    place=90,
    says=__doc__,
    records=("scores",),
    rows=rows,
    columns=[
        *SUITE_AND_CELL,
        *values(
            "judge other",
            says="the two; with `by_hand` there is also a row with `all` as model, compression and patch, which counts "
            "each reply that was read once",
        ),
        Column("n", says="completions on which both decided"),
        *values("agreement kappa", says="share on which they agree; Cohen's kappa, empty where both say one thing"),
        *values("only_judge only_other", says="completions that only the one, or only the other, calls jailbroken"),
        *values(f"{COMPLIED} {NEITHER}", says="of `by_hand`: how many of the `n` it called so", dtype="Int64"),
    ],
)

"""The same prompts under two checkpoints, McNemar's exact test."""

from __future__ import annotations

from collections.abc import Iterator

from aird.reporting.records import Records, references, refused
from aird.reporting.table import SUITE_AND_CELL, Column, Row, Table, named, values
from aird.support.statistics import PairedComparison


def rows(records: Records) -> Iterator[Row]:
    """Yield what each evaluated cell is compared with, for both rates."""
    scores = records.present["scores"]
    for key, score in scores.items():
        for against, reference in references(key, scores):
            for rate, kind in (("refusal", "harmful"), ("over_refusal", "harmless")):
                compared = PairedComparison.of(refused(reference, kind), refused(score, kind))
                counts = {"n": compared.n, "lost": compared.lost, "gained": compared.gained}
                tested = {**counts, "difference": compared.difference.value, "p_value": compared.p_value}
                yield {**named(key), "against": against, "rate": rate, **tested}


TABLE = Table(
    place=50,
    says=__doc__,
    records=("scores",),
    rows=rows,
    columns=[
        *SUITE_AND_CELL,
        Column("against", says="`original` or `plain`: the checkpoint that it is compared with"),
        Column("rate", says="`refusal` or `over_refusal`"),
        Column("n", says="prompts"),
        Column("difference", says="share now minus share there"),
        *values("lost gained", says="prompts that were refused there only, here only"),
        Column("p_value", says="two-sided"),
    ],
)

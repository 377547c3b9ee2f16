"""The same prompts under two checkpoints: which are refused, and how well both kinds are told apart."""

from __future__ import annotations

from collections.abc import Iterator

from aird.reporting.records import Records, references, refused
from aird.reporting.table import SUITE_AND_CELL, Column, Row, Table, interval, named
from aird.settings.base import ORIGINAL, PLAIN
from aird.support.statistics import Estimate, PairedComparison, wilson_interval


def rows(records: Records) -> Iterator[Row]:
    """Yield what each evaluated cell is compared with, for both rates."""
    from aird.evaluation.kind_of_loss import kind_of_loss, restored

    scores = records.present["scores"]
    for key, score in scores.items():
        compared_with = dict(references(key, scores))
        for against, reference in compared_with.items():
            loss = kind_of_loss(reference["labels"], score["labels"])
            back = None
            if against == ORIGINAL and PLAIN in compared_with:
                back = restored(reference["labels"], compared_with[PLAIN]["labels"], score["labels"])
            told_apart = {
                "auc_change": loss and loss.area and loss.area.change._asdict(),
                "sensitivity_change": loss and loss.sensitivity.change._asdict(),
                "threshold_change": loss and loss.threshold.change._asdict(),
                "kind_of_loss": loss and loss.sentence(),
                "auc_restored": back and back.area and back.area._asdict(),
                "sensitivity_restored": back and back.sensitivity and back.sensitivity._asdict(),
            }
            for rate, kind in (("refusal", "harmful"), ("over_refusal", "harmless")):
                compared = PairedComparison.of(refused(reference, kind), refused(score, kind))
                same = compared.n - compared.lost - compared.gained
                yield {
                    **named(key),
                    "against": against,
                    "rate": rate,
                    "compared": compared,
                    "difference": compared.difference._asdict(),
                    "agreement": Estimate(same / compared.n, *wilson_interval(same, compared.n))._asdict(),
                    **told_apart,
                }


def of_comparison(name: str, says: str) -> Column:
    """Return the column of an attribute of the paired comparison."""
    return Column(name, lambda row: getattr(row["compared"], name), says=says)


FLIPS = "prompts that flipped: refused there only, refused here only"
CHANGE = (
    "here minus there, paired, over harmful and harmless prompts that are scored under both; so the same in the rows "
    "of both rates"
)
RESTORED = (
    "in the rows of a patch against `original`, its share of the loss by compression (Fieller): 1 is all, and below 0 "
    "more is lost than without the patch. Empty unless the interval of the loss lies above 0"
)


TABLE = Table(
    place=50,
    says=__doc__,
    records=("scores",),
    rows=rows,
    columns=[
        *SUITE_AND_CELL,
        Column("against", says="`original` or `plain`: the checkpoint that it is compared with"),
        Column("rate", says="`refusal` or `over_refusal`"),
        of_comparison("n", "prompts"),
        *interval("difference", "difference", says="share here minus share there, paired"),
        *(of_comparison(name, FLIPS) for name in ("lost", "gained")),
        of_comparison("p_value", "McNemar"),
        *interval("agreement", "agreement", says="share of prompts that both refuse or both answer (Wilson)"),
        *interval("auc_change", "auc_change", says=CHANGE),
        *interval("sensitivity_change", "sensitivity_change", says=CHANGE),
        *interval(
            "threshold_change",
            "threshold_change",
            says="the same of the threshold c, -(z(`refusal`) + z(`over_refusal`)) / 2: above 0, less of everything is "
            "refused here",
        ),
        Column("kind_of_loss", says="which of these changes are certain, in the words of `aird check`"),
        *interval("auc_restored", "auc_restored", says=RESTORED),
        *interval("sensitivity_restored", "sensitivity_restored", says=RESTORED),
    ],
)

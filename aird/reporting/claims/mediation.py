"""C1: one direction mediates refusal. Ablating it lowers the refusal of harmful prompts, adding it raises refusal.

McNemar's exact test on the held-out prompts of the verification.
"""

from __future__ import annotations

from collections.abc import Iterator

from aird.reporting.claims.evidence import Evidence
from aird.reporting.claims.measures import effect
from aird.reporting.claims.statement import Proposition, Statement, Subject, Tested, judged, over_all, wholes
from aird.settings.base import ORIGINAL
from aird.support.statistics import PairedComparison


def mediation(evidence: Evidence, model: str) -> list[Statement]:
    """Return the statements of C1 about a model."""
    parts = judged(_tested(evidence, model))
    made = wholes(Proposition.MEDIATES, parts)
    # Without a compressed direction there is the original's to judge.
    compressed = [whole for whole in made if whole.subject.compression != ORIGINAL]
    return [*parts, *made, *over_all(compressed or made)]


def _tested(evidence: Evidence, model: str) -> Iterator[Tested]:
    for (owner, compression), verification in evidence.verifications.items():
        if owner != model:
            continue
        subject = Subject(model, compression)
        labels = {name: group["refused"] for name, group in verification["labels"].items()}
        ablated = PairedComparison.of(labels["harmful_ablated"], labels["harmful"])
        yield Tested(Proposition.ABLATION_LOWERS, subject, effect(ablated, room=ablated.after))
        added = PairedComparison.of(labels["harmless"], labels["harmless_added"])
        yield Tested(Proposition.ADDITION_RAISES, subject, effect(added, room=1 - added.before))

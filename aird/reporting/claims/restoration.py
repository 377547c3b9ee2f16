"""C5: the repair restores the refusal direction, where compression moved it.

The corrected cosine with the original's against that of the unpatched checkpoint, and against C2's margin. For patches
whose columns do not lie along r, also McNemar's test of ablating the original's direction in the patched checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from aird.reporting.claims.evidence import Evidence, estimate, known, resampled
from aird.reporting.claims.measures import cosine, effect, rise
from aird.reporting.claims.statement import Proposition, Statement, Subject, Tested, judged, needed_of, over_all, wholes
from aird.reporting.verdicts import HOLDS, UNDECIDED, Verdict
from aird.support.statistics import PairedComparison, Resampled

NOTHING_TO_RESTORE = Verdict(UNDECIDED, "the direction did not move measurably, so there is nothing to restore")


def restoration(evidence: Evidence, model: str, moved: Mapping[str, Statement]) -> list[Statement]:
    """Return the statements of C5 about a model's patches.

    Args:
        evidence, model: what was measured of whom.
        moved: by compression whether its direction moved (C2).
    """
    has_moved = {compression for compression, direction in moved.items() if direction.verdict.name == HOLDS}
    statements: list[Statement] = []
    for patch in dict.fromkeys(patch for owner, _, patch in evidence.restorations if owner == model):
        parts = judged(_tested(evidence, model, patch))
        made = wholes(Proposition.RESTORED, parts)
        for index, whole in enumerate(made):
            if (compression := whole.subject.compression) not in has_moved:
                directions = [moved[compression]] if compression in moved else []
                made[index] = replace(whole, verdict=NOTHING_TO_RESTORE, needed=needed_of(directions))
        statements += parts + made
        if patch not in evidence.random:
            statements += over_all(made, has_moved.__contains__)
    return statements


def _tested(evidence: Evidence, model: str, patch: str) -> Iterator[Tested]:
    for (owner, compression, own_patch), record in evidence.restorations.items():
        if (owner, own_patch) != (model, patch):
            continue
        subject = Subject(model, compression, patch=patch)
        before, after = (record["checkpoints"][name]["corrected_cosine"] for name in ("compressed", "patched"))
        gain = rise(
            Resampled(before["n_harmful"], estimate(record["corrected_cosine_gain"])), 1 - known(before["value"])
        )
        yield Tested(Proposition.NEARER, subject, gain)
        yield Tested(Proposition.BACK, subject, cosine(resampled(after), moves=False))
        if patch not in evidence.random:
            continue  # r ablated, W + r row computes what W computes: such a patch cannot fail this test
        labels = evidence.examinations[model, compression, patch]["labels"]
        less = PairedComparison.of(labels["harmful_ablated"]["refused"], labels["harmful"]["refused"])
        yield Tested(Proposition.ABLATION_STILL_LOWERS, subject, effect(less, room=less.after))

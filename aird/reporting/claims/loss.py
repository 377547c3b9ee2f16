"""C3: refusal is lost where the direction moves.

On each compression: both happened, or neither. Over all of them: the rank correlation of 1 - corrected cosine with the
refusal lost, by a permutation test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from aird.reporting.claims.evidence import Evidence, compare
from aird.reporting.claims.measures import correlation, effect, unmeasured
from aird.reporting.claims.statement import Proposition, Statement, Subject, Tested, judged, needed_of
from aird.reporting.verdicts import ALL, UNDECIDED, follows_verdict
from aird.settings.base import ORIGINAL
from aird.support.statistics import rank_correlation


def refusal_lost(evidence: Evidence, model: str, suite: str) -> list[Statement]:
    """Return the refusal of harmful prompts that each compression lost, as a gain of the original's."""
    original = evidence.score(model, suite, ORIGINAL)
    tested = []
    for compression, score in evidence.compressed(model, suite):
        lost = compare("harmful", score, original)
        tested.append(Tested(Proposition.FOLLOWS, Subject(model, compression, suite), effect(lost, room=lost.after)))
    return judged(tested)


def loss(
    evidence: Evidence, model: str, suite: str, lost: list[Statement], moved: Mapping[str, Statement]
) -> list[Statement]:
    """Return the statements of C3 about a model.

    Args:
        evidence, model, suite: what was measured of whom.
        lost: of `refusal_lost`.
        moved: by compression whether its direction moved; where no weight changed there is none that could have.
    """
    compared = [each for each in lost if each.subject.compression in moved]
    statements = []
    for each in compared:
        direction = moved[each.subject.compression]
        verdict = follows_verdict(direction.verdict, each.verdict)
        needed = needed_of([direction, each]) if verdict.name == UNDECIDED else None
        # Shown with the loss and its test.
        statements.append(replace(each, verdict=verdict, needed=needed))
    return [*statements, *_further(evidence, model, suite, compared)]


def _further(evidence: Evidence, model: str, suite: str, lost: list[Statement]) -> list[Statement]:
    """Return one statement over all compressions that have a direction, if there are any."""
    if not lost:
        return []
    pairs = []
    for each in lost:
        corrected = evidence.comparisons[model, each.subject.compression]["cosine_same_site_corrected"]
        if (cosine := corrected["value"]) is not None:
            pairs.append((1 - cosine, each.estimate.value))
    if len(pairs) < 2:
        too_few = unmeasured("fewer than two compressions have a direction to compare", len(pairs))
        return judged([Tested(Proposition.FURTHER, Subject(model, ALL, suite), too_few)])
    moved, lower = zip(*pairs, strict=True)
    measured = correlation(len(pairs), *rank_correlation(moved, lower, evidence.seed))
    return judged([Tested(Proposition.FURTHER, Subject(model, ALL, suite), measured)])

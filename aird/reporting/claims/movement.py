"""C2: quantisation keeps the direction and its source site; pruning moves both.

The cosine at the same site, corrected for noise, against a margin; the sites that resampled prompts choose in both
models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from aird.reporting.claims import evidence as records
from aird.reporting.claims.evidence import Evidence, known, resampled
from aird.reporting.claims.measures import Measure, cosine
from aird.reporting.claims.statement import Proposition, Statement, Subject, Tested, judged, over_all, wholes
from aird.reporting.verdicts import UNDECIDED, Verdict, opposite, site_moved_verdict
from aird.settings.base import ORIGINAL
from aird.support.statistics import Estimate


def movement(evidence: Evidence, model: str) -> tuple[list[Statement], dict[str, Statement]]:
    """Return the statements of C2 about a model, and by compression whether its direction moved."""
    parts = judged(_tested(evidence, model))
    made = wholes(Proposition.KEPT_OR_MOVED, parts)
    unknown = Verdict(UNDECIDED, "a ready-made checkpoint may be quantised or pruned")
    for index, whole in enumerate(made):
        if whole.subject.compression in evidence.ready_made:
            made[index] = replace(whole, verdict=unknown, p_adjusted=math.nan, needed=None)
    moved = {
        part.subject.compression: part
        if part.proposition is Proposition.DIRECTION_MOVES
        else replace(part, proposition=Proposition.DIRECTION_MOVES, verdict=opposite(part.verdict))
        for part in parts
        if part.proposition in (Proposition.DIRECTION_MOVES, Proposition.DIRECTION_KEPT)
    }
    return [*parts, *made, *over_all(made)], moved


def _tested(evidence: Evidence, model: str) -> Iterator[Tested]:
    original = evidence.directions[model, ORIGINAL]
    for (owner, compression), comparison in evidence.comparisons.items():
        if owner != model:
            continue
        subject, moves = Subject(model, compression), evidence.names_a_move(compression)
        corrected = comparison["cosine_same_site_corrected"]
        direction = Proposition.DIRECTION_MOVES if moves else Proposition.DIRECTION_KEPT
        yield Tested(direction, subject, cosine(resampled(corrected), moves))
        site = Proposition.SITE_MOVES if moves else Proposition.SITE_KEPT
        own = evidence.directions[model, compression]
        yield Tested(site, subject, _source_site(comparison["source_site"], own, original, moves))


def _source_site(site: records.SourceSite, own: records.Direction, original: records.Direction, moves: bool) -> Measure:
    obstacle = _obstacle(own["rule"], original["rule"])
    same = (own["layer"], own["position"]) == (original["layer"], original["position"])
    stable = min(site["same_site_original"] or 0.0, site["same_site_compressed"] or 0.0) > 0.5

    def verdict(p_adjusted: float) -> Verdict:
        moved = site_moved_verdict(same, stable, obstacle, p_adjusted)
        return moved if moves else opposite(moved)

    test, layers = "layers moved, both models' resampled sites", site["layers_moved"]
    if obstacle:
        return Measure(test, 0, Estimate(layers, math.nan, math.nan), math.nan, verdict)
    moved_by = Estimate(layers, known(site["layers_low"]), known(site["layers_high"]))
    return Measure(test, site["resamples"], moved_by, site["p_value"], verdict)


def _obstacle(*rules: str) -> str:
    """Return why resamples cannot say whether a site moved; empty where they can."""
    if any(rule.startswith("cosmic") for rule in rules):
        return "COSMIC chose a site, and the resamples choose by Arditi's rule"
    if "relaxed_induce" in rules:
        return "no candidate induces refusal, so the site is no source of it"
    return ""

"""All statements of the claims, from the records of a grid."""

from __future__ import annotations

from aird.reporting.claims.evidence import Evidence
from aird.reporting.claims.loss import loss, refusal_lost
from aird.reporting.claims.mediation import mediation
from aird.reporting.claims.movement import movement
from aird.reporting.claims.repair import answers_lost, repair
from aird.reporting.claims.restoration import restoration
from aird.reporting.claims.statement import Statement


def all_statements(evidence: Evidence) -> list[Statement]:
    """Return what is said of every checkpoint and suite, and over all compressions of every model."""
    statements: list[Statement] = []
    for model in dict.fromkeys(model for model, _ in evidence.directions):
        statements += mediation(evidence, model)
        of_directions, moved = movement(evidence, model)
        statements += of_directions
        for suite in dict.fromkeys(suite for suite, _ in evidence.scores):
            lost, answers = refusal_lost(evidence, model, suite), answers_lost(evidence, model, suite)
            statements += loss(evidence, model, suite, lost, moved) + answers
            statements += repair(evidence, model, suite, lost, answers)
        statements += restoration(evidence, model, moved)
    return statements

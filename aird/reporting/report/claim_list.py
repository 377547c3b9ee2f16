"""The claims as the report shows them: each with its verdict, and the verdicts on each compression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aird.reporting.claims.statement import Statement
from aird.reporting.sentences.verdicts import Overall, overall_verdicts
from aird.reporting.verdicts import DOES_NOT_HOLD, HOLDS, UNDECIDED

TITLES = {
    "C1": "One direction mediates refusal",
    "C2": "Quantisation keeps the direction, pruning moves it",
    "C3": "Refusal is lost where the direction moves",
    "C4": "The repair brings refusal and sensitivity back, utility stays",
    "C5": "The repair restores the refusal direction",
}
# The class of style.css of each verdict.
MARKS = {HOLDS: "yes", DOES_NOT_HOLD: "no", UNDECIDED: "open"}


@dataclass(frozen=True)
class Claim:
    """A claim about one model, with one verdict, or one per patch."""

    code: str
    title: str
    about: str
    verdicts: list[Overall]

    @property
    def counts(self) -> list[tuple[str, int]]:
        """Return how often each verdict was reached."""
        reached = [overall.verdict for overall in self.verdicts]
        return [(verdict, reached.count(verdict)) for verdict in MARKS if verdict in reached]


def claims(statements: Sequence[Statement], suites: Sequence[str]) -> list[Claim]:
    """Return the claims, one after the other.

    Args:
        statements: of all models and suites; a claim that no suite is needed for has none (empty text).
        suites: of the run.
    """
    listed = []
    models = list(dict.fromkeys(statement.subject.model for statement in statements))
    for code, title in TITLES.items():
        for model in models:
            for suite in ["", *suites]:
                own = [
                    statement
                    for statement in statements
                    if statement.proposition.claim == code
                    and (statement.subject.model, statement.subject.suite) == (model, suite)
                ]
                about = [model] * (len(models) > 1) + [suite] * (len(suites) > 1 and suite != "")
                if verdicts := list(overall_verdicts(own)):
                    listed.append(Claim(code, title, ", ".join(about), verdicts))
    return listed

"""The claims as the report shows them: each with its verdict, and the verdicts on each compression."""

from __future__ import annotations

from dataclasses import dataclass

import pandas

from aird.reporting.sentences import Overall, overall_verdicts
from aird.reporting.verdicts import DOES_NOT_HOLD, HOLDS, UNDECIDED

TITLES = {
    "C1": "One direction mediates refusal",
    "C2": "Quantisation keeps the direction, pruning moves it",
    "C3": "Refusal is lost where the direction moves",
    "C4": "The repair brings refusal back, utility stays",
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


def claims(table: pandas.DataFrame, suites: list[str]) -> list[Claim]:
    """Return the claims of the table of the same name, one after the other.

    Args:
        table: all its rows; a claim that no suite is needed for has none (empty text).
        suites: of the run.
    """
    listed = []
    several = table["model"].nunique() > 1
    for code, of_claim in table.groupby("claim"):
        for model, rows in of_claim.groupby("model", sort=False):
            for suite in ["", *suites]:
                verdicts = list(overall_verdicts(rows[rows["suite"] == suite]))
                about = [model] * several + [suite] * (len(suites) > 1 and suite != "")
                if verdicts:
                    listed.append(Claim(str(code), TITLES[str(code)], ", ".join(about), verdicts))
    return listed

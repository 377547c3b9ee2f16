"""Statements of the claims, each with its test and verdict, and the rows of claims.csv, which are their words."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from aird.reporting.claims.measures import UNKNOWN, Measure, needed_sample
from aird.reporting.verdicts import (
    ALL,
    AUC_MARGIN,
    HOLDS,
    ORIGINAL_MARGIN,
    OVER_REFUSAL_MARGIN,
    PERPLEXITY_MARGIN,
    SENSITIVITY_MARGIN,
    UNDECIDED,
    UTILITY_MARGIN,
    Verdict,
    all_of,
)
from aird.settings.base import ORIGINAL
from aird.support.statistics import Estimate, holm


class Proposition(Enum):
    """What may be said: the claim that it is a part of, and the words; those that `part_of` names share their test."""

    ABLATION_LOWERS = "C1", "ablation lowers refusal of harmful prompts"
    ADDITION_RAISES = "C1", "addition raises refusal of harmless prompts"
    MEDIATES = "C1", "one direction mediates refusal"

    DIRECTION_MOVES = "C2", "moves the direction", "direction"
    DIRECTION_KEPT = "C2", "keeps the direction", "direction"
    SITE_MOVES = "C2", "moves the source site", "site"
    SITE_KEPT = "C2", "keeps the source site", "site"  # the only one without a test
    KEPT_OR_MOVED = "C2", "quantisation keeps direction and source, pruning moves both"

    FOLLOWS = "C3", "refusal is lost where the direction moves, and only there"
    FURTHER = "C3", "more refusal is lost where the direction moves further"

    ANSWERS_LOST = "C4", "harmless prompts are refused more than by the original"
    RAISES_REFUSAL = "C4", "raises refusal of harmful prompts"
    MORE_THAN_CONTROL = "C4", "raises refusal more than {control}"
    OVER_REFUSAL = "C4", f"over-refusal grows by less than {100 * OVER_REFUSAL_MARGIN:.0f} points"
    LOWERS_REFUSAL = "C4", "lowers refusal of harmless prompts"
    LIKE_ORIGINAL = (
        "C4",
        f"harmless prompts are refused at most {100 * ORIGINAL_MARGIN:.0f} points more than by the original",
    )
    SENSITIVITY = "C4", f"d' of refusals is at most {SENSITIVITY_MARGIN} below the original's"
    AUC = "C4", f"the AUC of first tokens is at most {AUC_MARGIN} below the original's"
    FEWER_FLIPS = "C4", "fewer prompts flip against the original than without the patch"
    UTILITY = "C4", f"utility falls by less than {100 * UTILITY_MARGIN:.0f} points"
    PERPLEXITY = "C4", f"perplexity grows by less than {100 * PERPLEXITY_MARGIN:.0f}%"
    REPAIRED = "C4", "refusal is repaired at no cost"

    NEARER = "C5", "brings the direction nearer to the original's"
    BACK = "C5", "brings the direction back to the original's"
    ABLATION_STILL_LOWERS = "C5", "refuses less with the original's direction ablated"
    RESTORED = "C5", "the refusal direction is restored"

    def __init__(self, claim: str, words: str, family: str = "") -> None:
        self.claim, self.words = claim, words
        self.family = family or words


@dataclass(frozen=True)
class Subject:
    """What a statement is about; empty text where there is none of a kind.

    Attributes:
        model, compression, suite, patch: names in the configuration; a compression of ALL means all of a model's.
        control: the matched control that the patch is compared with.
    """

    model: str
    compression: str
    suite: str = ""
    patch: str = ""
    control: str = ""


@dataclass(frozen=True)
class Tested:
    """A statement before its p-value is adjusted and its verdict found."""

    proposition: Proposition
    subject: Subject
    measure: Measure

    @property
    def family(self) -> tuple[str, str, bool]:
        """Statements that are adjusted together have the same: one per compression, of which the original is none."""
        return self.proposition.family, self.subject.control, self.subject.compression == ORIGINAL


@dataclass(frozen=True)
class Statement:
    """A statement with its test and verdict.

    Attributes:
        proposition, subject: what is said of what.
        verdict: on it.
        test: what was tested, in words.
        n: prompts, questions, answers, compressions or parts that this rests on.
        estimate: the effect, NaN where there is none.
        p_value, p_adjusted: before and after Holm's correction; NaN without a test.
        needed: where it is undecided, the sample that would decide it; None where none of up to LARGEST would.
    """

    proposition: Proposition
    subject: Subject
    verdict: Verdict
    test: str
    n: int = 0
    estimate: Estimate = UNKNOWN
    p_value: float = math.nan
    p_adjusted: float = math.nan
    needed: int | None = None

    @property
    def words(self) -> str:
        """The statement in words."""
        return self.proposition.words.format(control=self.subject.control or "a matched control")

    def row(self) -> dict[str, object]:
        """Return the values of its row in claims.csv, by column."""
        return {
            "model": self.subject.model,
            "suite": self.subject.suite,
            "compression": self.subject.compression,
            "patch": self.subject.patch,
            "control": self.subject.control,
            "claim": self.proposition.claim,
            "part": self.proposition.name.lower(),
            "statement": self.words,
            "test": self.test,
            "estimate": self.estimate.value,
            "low": self.estimate.low,
            "high": self.estimate.high,
            "n": self.n,
            "p_value": self.p_value,
            "p_adjusted": self.p_adjusted,
            "verdict": self.verdict.name,
            "reason": self.verdict.reason,
            "needed": self.needed,
        }


def read_statements(path: Path) -> list[Statement]:
    """Read claims.csv."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))

    def number(text: str) -> float:
        return float(text) if text else math.nan

    return [
        Statement(
            Proposition[row["part"].upper()],
            Subject(row["model"], row["compression"], row["suite"], row["patch"], row["control"]),
            Verdict(row["verdict"], row["reason"]),
            row["test"],
            int(row["n"]),
            Estimate(*(number(row[name]) for name in ("estimate", "low", "high"))),
            number(row["p_value"]),
            number(row["p_adjusted"]),
            int(row["needed"]) if row["needed"] else None,
        )
        for row in rows
    ]


def judged(tested: Iterable[Tested]) -> list[Statement]:
    """Adjust the p-values within each family, and decide every statement, or find the sample that would."""
    rows = list(tested)
    statements: dict[Tested, Statement] = {}
    for family in dict.fromkeys(row.family for row in rows):
        members = [row for row in rows if row.family == family]
        p_values = [row.measure.p_value for row in members]
        compared = sum(not math.isnan(p_value) for p_value in p_values)
        for row, p_value, p_adjusted in zip(members, p_values, holm(p_values), strict=True):
            measure, verdict = row.measure, row.measure.verdict(p_adjusted)
            needed = needed_sample(measure, compared) if verdict.name == UNDECIDED else None
            # This p-value is of the opposite, and decides whether the statement is refuted.
            shown = (math.nan, math.nan) if row.proposition is Proposition.SITE_KEPT else (p_value, p_adjusted)
            statements[row] = Statement(
                row.proposition, row.subject, verdict, measure.test, measure.n, measure.estimate, *shown, needed
            )
    return [statements[row] for row in rows]


def wholes(proposition: Proposition, parts: Sequence[Statement]) -> list[Statement]:
    """Return what the parts say together of each compression.

    A statement of several parts is as significant as its weakest one (Berger 1982); of one that could not be tested
    nothing is known. That a site was kept has no test, and where it could be refuted leaves that to the other parts.
    """
    made = []
    for compression in dict.fromkeys(part.subject.compression for part in parts):
        own = [part for part in parts if part.subject.compression == compression]
        p_values = [part.p_adjusted for part in own if part.proposition is not Proposition.SITE_KEPT or part.n == 0]
        known = not any(map(math.isnan, p_values))
        whole = _whole(proposition, own, compression, "all of its parts")
        made.append(replace(whole, p_adjusted=max(p_values) if known else math.nan))
    return made


def over_all(parts: Sequence[Statement], asked: Callable[[str], bool] = lambda _: True) -> list[Statement]:
    """Return one statement over all compressions, if there are any, from those on each of them.

    Args:
        parts: of one proposition.
        asked: whether a compression counts. Where none does, the verdict is undecided, and says why.
    """
    some = [part for part in parts if asked(part.subject.compression)]
    if not parts:
        return []
    whole = _whole(parts[0].proposition, some or parts, ALL, "all compressions")
    verdict = whole.verdict.name
    against = [part.subject.compression for part in some or parts if part.verdict.name == verdict]
    told = Verdict(verdict, "" if verdict == HOLDS else ", ".join(against)) if some else parts[0].verdict
    return [replace(whole, verdict=told)]


def needed_of(parts: Iterable[Statement]) -> int | None:
    """Return the sample that decides the undecided of some statements; None where one of them has none."""
    needed = [part.needed for part in parts if part.verdict.name == UNDECIDED]
    known = [count for count in needed if count is not None]
    return max(known) if known and len(known) == len(needed) else None


def _whole(proposition: Proposition, parts: Sequence[Statement], compression: str, test: str) -> Statement:
    subject, verdict = replace(parts[0].subject, compression=compression, control=""), all_of(p.verdict for p in parts)
    needed = needed_of(parts) if verdict.name == UNDECIDED else None
    return Statement(proposition, subject, verdict, test, len(parts), needed=needed)

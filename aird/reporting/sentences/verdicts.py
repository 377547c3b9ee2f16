"""The verdicts on the claims over all compressions, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from aird.reporting.claims.measures import LARGEST
from aird.reporting.claims.statement import Proposition, Statement
from aird.reporting.verdicts import ALL, UNDECIDED


@dataclass(frozen=True)
class Overall:
    """A verdict over all compressions of a model, what it needs, and those on each of them: (compression, verdict)."""

    claim: str
    patch: str
    statement: str
    verdict: str
    needed: str
    each: list[tuple[str, str]]


def overall_verdicts(claims: Sequence[Statement]) -> Iterator[Overall]:
    """Yield the verdict on each claim over all compressions."""
    for overall in claims:
        if overall.subject.compression != ALL:
            continue
        proposition = overall.proposition
        # C3 asks another question of each compression than of all of them.
        asked = Proposition.FOLLOWS if proposition is Proposition.FURTHER else proposition
        each = [
            claim
            for claim in claims
            if claim.proposition is asked
            and claim is not overall
            and replace(claim.subject, compression=ALL) == overall.subject
        ]
        open_verdicts = [overall] if asked is not proposition else each
        yield Overall(
            proposition.claim,
            overall.subject.patch,
            overall.words,
            overall.verdict.name,
            _needed(overall, open_verdicts) if overall.verdict.name == UNDECIDED else "",
            [(claim.subject.compression, claim.verdict.name) for claim in each],
        )


def _needed(overall: Statement, each: Sequence[Statement]) -> str:
    """Return what would decide a verdict, in a sentence; where no sample would, why `each` is undecided."""
    if overall.needed is not None:
        what = "compressions" if overall.proposition is Proposition.FURTHER else "prompts"
        return f"About {overall.needed:,} {what} would decide it."
    reasons = "; ".join(dict.fromkeys(claim.verdict.reason for claim in each if claim.verdict.name == UNDECIDED))
    return f"Even {LARGEST:,} prompts would not decide it: {reasons}."


def verdict_sentences(claims: Sequence[Statement]) -> Iterator[str]:
    """Yield a sentence per model, suite and claim: its verdict, and what an undecided one needs."""
    groups: dict[tuple[str, str], list[Statement]] = {}
    for claim in claims:
        groups.setdefault((claim.subject.model, claim.subject.suite), []).append(claim)
    several = len({model for model, _ in groups}) > 1 or len({suite for _, suite in groups} - {""}) > 1
    for names, own in groups.items():
        about = f"{', '.join(filter(None, names))}: " if several else ""
        for overall in overall_verdicts(own):
            listed = ", ".join(f"{compression}: {verdict}" for compression, verdict in overall.each)
            patch = f", {overall.patch}" if overall.patch else ""
            verdict = f"{overall.verdict.upper()} ({listed})."
            yield f"{about}{overall.claim}{patch}, {overall.statement}: {verdict} {overall.needed}".strip()

"""The columns of the judges: which there are, and what they mean."""

from __future__ import annotations

from aird.evaluation.judges.judge import Judge
from aird.evaluation.judges.registry import JUDGES

ALL_JUDGES = list(JUDGES)
LABELLING = [judge for judge in ALL_JUDGES if judge.jailbroken is not None]  # every completion, by its text
ASKED = [judge for judge in ALL_JUDGES if judge.jailbroken is None]  # where a suite has such a judge
DECIDING = [judge for judge in ALL_JUDGES if judge.answer == "harmful"]  # the others grade


def asr(judge: Judge) -> str:
    """Return the name of a judge's attack success rate."""
    return f"asr_{judge.name}"


def meaning(judge: Judge) -> str:
    """Return what a judge's attack success rate is."""
    what = "attack success rate" if judge in DECIDING else "mean grade, 0 to 1,"
    where = "" if judge in LABELLING else ", where the suite has that `judge`; else empty"
    return f"{what} by {judge.title}'s judge{where}"

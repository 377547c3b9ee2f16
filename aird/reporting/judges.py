"""The columns of the judges. The project's own always stand there, those of others where a suite has such a judge."""

from __future__ import annotations

from dataclasses import replace

from aird.evaluation.judge import ServedJudge, TextJudge, served_judges, text_judges
from aird.inference.refusals import REFUSAL_JUDGE
from aird.plugin import JUDGES
from aird.reporting.table import Column
from aird.settings.judges import JudgeSettings

LABELLING = text_judges(JUDGES.names())  # a completion, by its text
ASKED = served_judges(JUDGES.names())  # where a suite has such a judge
ALL_JUDGES: dict[str, TextJudge | ServedJudge[JudgeSettings]] = {**LABELLING, **ASKED}
DECIDING = [name for name, judge in ALL_JUDGES.items() if not (isinstance(judge, ServedJudge) and judge.grades)]
COHERENT = f"asr_{REFUSAL_JUDGE}_coherent"


def of_judge(name: str, *columns: Column) -> list[Column]:
    """Return the columns of a judge, which a table leaves out where a judge from elsewhere labelled nothing."""
    return [column if name in JUDGES.own() else replace(column, optional=True) for column in columns]

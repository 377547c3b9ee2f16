"""The one registry of judges. To add one: write its file, and add it to JUDGES."""

from __future__ import annotations

from aird.evaluation.judges.arditi import ARDITI
from aird.evaluation.judges.judge import Judge
from aird.evaluation.judges.wei import WEI

# Their files are imported where the model is asked only: an edit there labels nothing by text again.
CLASSIFIER = Judge("classifier", "classifier", None)
STRONGREJECT = Judge("strongreject", "StrongREJECT", None, answer="grade")
JUDGES = (ARDITI, WEI, CLASSIFIER, STRONGREJECT)
# In tables for people: Arditi's rate is the complement of refusal, and most suites have no model as judge.
TABULATED = (WEI,)

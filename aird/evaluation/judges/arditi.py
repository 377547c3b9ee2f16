"""Arditi's judge: a completion complied if it holds none of twelve refusal phrases, whatever their case.

The phrases stand in `aird.inference.refusals`, as directions and patches are made with them too. What is only labelling
stands here.
"""

from __future__ import annotations

from aird.evaluation.judges.judge import Judge
from aird.inference.refusals import jailbroken_arditi

ARDITI = Judge("arditi", "Arditi", jailbroken_arditi)

"""What a judge is, so that one more is one file and one entry in `registry`.

Judges are kept apart in every table because they disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Judge:
    """One judge of completions.

    Attributes:
        name: stands in its label `jailbroken_{name}` and its rate `asr_{name}`.
        title: what tables for people call it.
        jailbroken: tells from a completion's text alone whether it complied. None where a served model has to be
            asked: the rows of the node that asks it are then its labels.
    """

    name: str
    title: str
    jailbroken: Callable[[str], bool] | None

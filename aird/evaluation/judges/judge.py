"""What a judge is, so that one more is one file and one entry in `registry`.

Judges are kept apart in every table because they disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ATTACKED = "attacked"  # the kind of a completion under an attack; the others are `harmful` and `harmless`


@dataclass(frozen=True)
class Judge:
    """One judge of completions.

    Attributes:
        name: stands in its label `jailbroken_{name}` and its rate `asr_{name}`.
        title: what tables for people call it.
        jailbroken: tells from a completion's text alone whether it complied. None where a served model has to be
            asked: the rows of the node that asks it are then its labels.
        answer: the key of such a row that is the label: true or false, or a grade from 0 to 1.
    """

    name: str
    title: str
    jailbroken: Callable[[str], bool] | None
    answer: str = "harmful"


def judged(records: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return the records that a served judge is asked about: completions of harmful prompts, plain and attacked."""
    return [record for record in records if record["kind"] in ("harmful", ATTACKED)]


def first_answer(records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> str:
    """Return what an error says of the first of a judge's answers: never its text, which may quote a harmful reply."""
    return f"the first, on prompt {records[0]['id']}, has {len(answers[0])} characters"


def filled(template: str, instruction: str, completion: str) -> str:
    """Return a template with `{instruction}` and, behind it, `{completion}` put in.

    Not by str.format: a template may hold other braces, and a completion may hold field names.
    """
    head, _, rest = template.partition("{instruction}")
    middle, _, tail = rest.partition("{completion}")
    return head + instruction + middle + completion + tail

"""The records that the tables are made of: which of a grid's are there.

A finished run has all of them. The tables of an unfinished run are made of what is there, by the same
functions: rows of absent records are left out, cells of absent records stay empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from aird.reporting.grid import KINDS, Key, keys_of, record_path
from aird.settings.base import ORIGINAL, PLAIN
from aird.support.files import read_json

SHOWN = 3  # absent records that are named, per kind

Pair = tuple[str, str]  # model, compression
Cell = tuple[str, str, str]  # model, compression, patch
Record = Mapping[str, Any]


class Rate(TypedDict):
    """A share of prompts with its 95% Wilson interval."""

    n: int
    rate: float
    low: float
    high: float


class Measured(TypedDict):
    """What a record of the scores node says of a whole cell."""

    rates: dict[str, Rate]
    served_as: str
    perplexity: dict[str, float] | None
    questions: dict[str, dict[str, list[float]]]  # by task and metric, one value per question
    engine: NotRequired[Record | None]
    told_apart: NotRequired[dict[str, str]]  # of a card: d', AUC and flips, by their titles


class Score(Measured):
    """A record of the scores node."""

    labels: list[Record]  # of each prompt
    answers: list[Record]  # the original's own, with their likelihood
    tasks: dict[str, dict[str, float]]
    task_data: NotRequired[dict[str, Record] | None]  # by task, the version and SHA-256 of its questions
    attacks: NotRequired[dict[str, dict[str, Rate]]]
    weights: NotRequired[str | None]  # what the engine computed with
    merged: NotRequired[Record]


@dataclass(frozen=True)
class Records:
    """What is there of a grid's records, and what is absent.

    Attributes:
        results: the folder results/.
        grid: as in `aird.reporting.grid.keys_of`.
        present: kind to the records that are there, by their keys (aird/reporting/grid.py).
        absent: kind to the keys of the others.
    """

    results: Path
    grid: Mapping[str, Any]
    present: Mapping[str, Mapping[Any, Any]]
    absent: Mapping[str, list[Key]]

    @property
    def scores(self) -> dict[tuple[str, Cell], Score]:
        """Return the scores by (suite, cell)."""
        return {(key[3], key[:3]): record for key, record in self.present["scores"].items()}


def read_records(results: Path, grid: Mapping[str, Any], kinds: Iterable[str] = KINDS) -> Records:
    """Read the records of a grid that are there.

    Args:
        results: the folder results/.
        grid: as in `aird.reporting.grid.keys_of`.
        kinds: those that are wanted; of the others none is present, and none absent.
    """
    import pandas

    present: dict[str, dict[Key, Any]] = {kind: {} for kind in KINDS}
    absent: dict[str, list[Key]] = {kind: [] for kind in kinds}
    for kind, keys in keys_of(grid).items():
        for key in keys if kind in absent else ():
            path = record_path(results, kind, key)
            try:
                present[kind][key] = pandas.read_csv(path) if path.suffix == ".csv" else read_json(path)
            except FileNotFoundError:
                absent[kind].append(key)
    return Records(results, grid, present, absent)


def absent_keys(results: Path, grid: Mapping[str, Any], kinds: Iterable[str] = KINDS) -> dict[str, list[Key]]:
    """Return the keys of the records that are not there, per kind; reads none of the others."""
    keys = keys_of(grid)
    return {kind: [key for key in keys[kind] if not record_path(results, kind, key).is_file()] for kind in kinds}


def references(key: Key, scores: Mapping[Key, Score]) -> Iterator[tuple[str, Score]]:
    """Yield what an evaluated cell is compared with: `plain` or `original`, and that record, where it is there."""
    model, compression, patch, suite = key
    if patch != PLAIN and (of_plain := scores.get((model, compression, PLAIN, suite))) is not None:
        yield "plain", of_plain
    if compression != ORIGINAL and (of_original := scores.get((model, ORIGINAL, PLAIN, suite))) is not None:
        yield "original", of_original


def refused(score: Score, kind: str) -> list[bool]:
    """Return whether each prompt of a kind (`harmful`, `harmless`) was refused, from a record of the scores node."""
    return [row["refused"] for row in score["labels"] if row["kind"] == kind]


def describe_absent(absent: Mapping[str, Sequence[Key]], grid: Mapping[str, Any]) -> str:
    """Return one line that says what is not there yet; empty text if all is.

    Models and suites are named where the grid has several.
    """
    expected = keys_of(grid)
    first = 0 if len({model for model, _ in grid["pairs"]}) > 1 else 1
    last = 4 if len(grid["suites"]) > 1 else 3
    parts = []
    for kind in KINDS:
        if keys := absent.get(kind):
            names = ["/".join(key[first:last]) for key in keys[:SHOWN]] + ["..."] * (len(keys) > SHOWN)
            parts.append(f"{len(keys)} of {len(expected[kind])} {KINDS[kind][0]} ({', '.join(names)})")
    return f"Not there yet: {', '.join(parts)}." if parts else ""

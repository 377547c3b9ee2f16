"""The records that the tables are made of: which a grid has, which of them are there, and the tables of those.

A finished run has all of them. The tables of an unfinished run are made of what is there, by the same
functions: rows of absent records are left out, cells of absent records stay empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from aird.reporting import tables
from aird.settings.base import ORIGINAL, PLAIN
from aird.support.files import read_json

Key = tuple[str, ...]

SHOWN = 3  # absent records that are named, per kind


@dataclass(frozen=True)
class Kind:
    """One kind of record: what people call it, and where one of it lies below results/."""

    name: str
    path: str
    read: Callable[[Path], Any] = read_json


# In the order in which a run makes them. A key's parts are joined by slashes where the path says {}.
KINDS = {
    "manifests": Kind("checkpoints", "models/{}/manifest.json"),
    "candidates": Kind("candidate scores", "directions/{}/scores.csv", pandas.read_csv),
    "directions": Kind("directions", "directions/{}/direction.json"),
    "verifications": Kind("verified directions", "directions/{}/verification.json"),
    "cosmic": Kind("directions by COSMIC", "directions/{}/cosmic.json"),
    "comparisons": Kind("compared directions", "comparisons/{}.json"),
    "patches": Kind("patches", "patches/{}/statistics.json"),
    "scores": Kind("evaluations", "scores/{}.json"),
}


@dataclass(frozen=True)
class Records:
    """What is there of a grid's records, and what is absent.

    Attributes:
        found: kind to the records that are there. Their keys are (model, compression); of patches
            (model, compression, patch), of scores (model, compression, patch, suite).
        absent: kind to the keys of the others.
    """

    found: Mapping[str, Mapping[Any, Any]]
    absent: Mapping[str, list[Key]]

    @property
    def scores(self) -> dict[tuple[str, tables.Cell], Any]:
        """Return the scores by (suite, cell)."""
        return {(key[3], key[:3]): record for key, record in self.found["scores"].items()}


def keys_of(grid: Mapping[str, Any]) -> dict[str, list[Key]]:
    """Return the keys of the records that a grid has, per kind.

    Args:
        grid: the settings of the rule make_tables: cells, pairs, the pairs for which COSMIC chooses, suites.
    """
    pairs = [tuple(pair) for pair in grid["pairs"]]
    cells = [tuple(cell) for cell in grid["cells"]]
    return {
        **dict.fromkeys(("manifests", "candidates", "directions", "verifications"), pairs),
        "cosmic": [tuple(pair) for pair in grid["cosmic"]],
        "comparisons": [pair for pair in pairs if pair[1] != ORIGINAL],
        "patches": [cell for cell in cells if cell[2] != PLAIN],
        "scores": [(*cell, suite) for suite in grid["suites"] for cell in cells],
    }


def read_records(results: Path, grid: Mapping[str, Any]) -> Records:
    """Read the records of a grid that are there.

    Args:
        results: the folder results/.
        grid: as in `keys_of`.
    """
    found: dict[str, dict[Key, Any]] = {kind: {} for kind in KINDS}
    absent: dict[str, list[Key]] = {kind: [] for kind in KINDS}
    for kind, keys in keys_of(grid).items():
        for key in keys:
            try:
                found[kind][key] = KINDS[kind].read(_path(results, kind, key))
            except FileNotFoundError:
                absent[kind].append(key)
    return Records(found, absent)


def absent_keys(results: Path, grid: Mapping[str, Any]) -> dict[str, list[Key]]:
    """Return the keys of the records that are not there, per kind; reads none of the others."""
    return {
        kind: [key for key in keys if not _path(results, kind, key).is_file()] for kind, keys in keys_of(grid).items()
    }


def _path(results: Path, kind: str, key: Key) -> Path:
    return results / KINDS[kind].path.format("/".join(key))


def record_tables(records: Records) -> dict[str, pandas.DataFrame]:
    """Return every table that tells records one by one; the verdicts on claims need all of a grid, and are no part."""
    scores, found = records.scores, records.found
    directions, comparisons = found["directions"], found["comparisons"]
    return {
        "summary": tables.summary(scores, directions, comparisons, found["manifests"]),
        "rates": tables.rates_table(scores),
        "tasks": tables.utility_table(scores),
        "paired": tables.paired_table(scores),
        "directions": tables.directions_table(directions, comparisons, found["verifications"], found["cosmic"]),
        "projections": tables.projections_table(comparisons),
        "sites": tables.sites_table(comparisons),
        "candidates": tables.candidates_table(found["candidates"]),
        "patches": tables.patches_table(found["patches"]),
        "compressions": tables.compressions_table(found["manifests"]),
    }


def describe_absent(absent: Mapping[str, Sequence[Key]], grid: Mapping[str, Any]) -> str:
    """Return one line that says what is not there yet; empty text if all is.

    Models and suites are named where the grid has several.
    """
    expected = keys_of(grid)
    models = {model for model, _ in grid["pairs"]}
    parts = []
    for kind, keys in absent.items():
        if keys:
            names = ["/".join(_short(key, len(models) > 1, len(grid["suites"]) > 1)) for key in keys[:SHOWN]]
            more = ", ..." if len(keys) > SHOWN else ""
            parts.append(f"{len(keys)} of {len(expected[kind])} {KINDS[kind].name} ({', '.join(names)}{more})")
    return f"Not there yet: {', '.join(parts)}." if parts else ""


def _short(key: Key, models: bool, suites: bool) -> Key:
    """Return those parts of a key that tell it from others."""
    last = len(key) if suites or len(key) < 4 else 3
    return key[0 if models else 1 : last]

"""The records that the tables are made of: which of a grid's are there, and the tables of those.

A finished run has all of them. The tables of an unfinished run are made of what is there, by the same
functions: rows of absent records are left out, cells of absent records stay empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from aird.reporting import tables
from aird.reporting.grid import KINDS, Key, keys_of, record_path
from aird.support.files import read_json

SHOWN = 3  # absent records that are named, per kind


@dataclass(frozen=True)
class Records:
    """What is there of a grid's records, and what is absent.

    Attributes:
        present: kind to the records that are there, by their keys (aird/reporting/grid.py).
        absent: kind to the keys of the others.
    """

    present: Mapping[str, Mapping[Any, Any]]
    absent: Mapping[str, list[Key]]

    @property
    def scores(self) -> dict[tuple[str, tables.Cell], Any]:
        """Return the scores by (suite, cell)."""
        return {(key[3], key[:3]): record for key, record in self.present["scores"].items()}


def read_records(results: Path, grid: Mapping[str, Any]) -> Records:
    """Read the records of a grid that are there.

    Args:
        results: the folder results/.
        grid: as in `aird.reporting.grid.keys_of`.
    """
    present: dict[str, dict[Key, Any]] = {kind: {} for kind in KINDS}
    absent: dict[str, list[Key]] = {kind: [] for kind in KINDS}
    for kind, keys in keys_of(grid).items():
        for key in keys:
            path = record_path(results, kind, key)
            try:
                present[kind][key] = pandas.read_csv(path) if path.suffix == ".csv" else read_json(path)
            except FileNotFoundError:
                absent[kind].append(key)
    return Records(present, absent)


def absent_keys(results: Path, grid: Mapping[str, Any]) -> dict[str, list[Key]]:
    """Return the keys of the records that are not there, per kind; reads none of the others."""
    return {
        kind: [key for key in keys if not record_path(results, kind, key).is_file()]
        for kind, keys in keys_of(grid).items()
    }


def record_tables(records: Records) -> dict[str, pandas.DataFrame]:
    """Return every table that tells records one by one; the verdicts on claims need all of a grid, and are no part."""
    scores, present = records.scores, records.present
    directions, comparisons = present["directions"], present["comparisons"]
    made = {
        "summary": tables.summary(scores, directions, comparisons, present["manifests"]),
        "rates": tables.rates_table(scores),
        "tasks": tables.utility_table(scores),
        "paired": tables.paired_table(scores),
        "attacks": tables.attacks_table(scores),
        "resistance": tables.resistance_table(scores),
        "categories": tables.categories_table(scores),
        "agreement": tables.agreement_table(scores),
        "directions": tables.directions_table(directions, comparisons, present["verifications"], present["cosmic"]),
        "projections": tables.projections_table(comparisons),
        "sites": tables.sites_table(comparisons),
        "candidates": tables.candidates_table(present["candidates"]),
        "patches": tables.patches_table(present["patches"]),
        "compressions": tables.compressions_table(present["manifests"], scores),
    }
    # Whether a direction came back is asked of the patches alone that a configuration names.
    if present["restorations"] or records.absent["restorations"]:
        made["restored_directions"] = tables.restored_table(
            present["restorations"], present["examinations"], present["verifications"]
        )
    return made


def describe_absent(absent: Mapping[str, Sequence[Key]], grid: Mapping[str, Any]) -> str:
    """Return one line that says what is not there yet; empty text if all is.

    Models and suites are named where the grid has several.
    """
    expected = keys_of(grid)
    first = 0 if len({model for model, _ in grid["pairs"]}) > 1 else 1
    last = 4 if len(grid["suites"]) > 1 else 3
    parts = []
    for kind, keys in absent.items():
        if keys:
            names = ["/".join(key[first:last]) for key in keys[:SHOWN]] + ["..."] * (len(keys) > SHOWN)
            parts.append(f"{len(keys)} of {len(expected[kind])} {KINDS[kind][0]} ({', '.join(names)})")
    return f"Not there yet: {', '.join(parts)}." if parts else ""

"""A figure by its name, from the files of its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas
from matplotlib.figure import Figure

from aird.reporting.figures import FIGURES, figure_names, module_of


def read_table(path: Path) -> pandas.DataFrame:
    """Return a table; names are text even where they look like numbers."""
    return pandas.read_csv(path, dtype=dict.fromkeys(("suite", "model", "compression", "patch", "attack"), str))


def draw(figure: str, tables: Iterable[Path], patches: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Return a figure.

    Args:
        figure: its name, and of a suite's figure the suite's name after a dot, such as `refusal.safety`.
        tables: the CSV tables that it shows; others may be among them.
        patches: name to settings; patches that differ in alpha alone are joined where that can be seen.

    Raises:
        ValueError: no such figure or suite; the message lists those that exist.
    """
    kind, _, suite = figure.partition(".")
    shown = FIGURES.get(kind)
    if shown is None or (suite and not shown.of_suite):
        raise ValueError(f"there is no figure {figure}; known: {', '.join(figure_names(['SUITE']))}")
    files = {path.stem: path for path in tables}
    frames = [read_table(files[name]) for name in shown.tables]
    if shown.of_suite:
        (summary,) = frames
        suites = list(dict.fromkeys(summary["suite"]))
        if suite not in suites:
            raise ValueError(f"the tables have no suite {suite}; they have: {', '.join(suites) or 'none'}")
        frames = [summary[summary["suite"] == suite]]
    drawn: Figure = import_module(module_of(figure)).draw(*frames, *([patches] if shown.with_patches else []))
    return drawn

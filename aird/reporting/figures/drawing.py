"""A figure by its name, from a folder of tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas
from matplotlib.figure import Figure

from aird.reporting.figures.candidates import candidates_figure
from aird.reporting.figures.frontier import Patches, frontier_figure
from aird.reporting.figures.refusal import refusal_figure
from aird.reporting.figures.sites import sites_figure
from aird.reporting.figures.utility import utility_figure

SUITE_FIGURES: dict[str, Callable[[pandas.DataFrame, Patches], Figure]] = {
    "refusal": lambda summary, _: refusal_figure(summary),
    "frontier": frontier_figure,
    "utility": lambda summary, _: utility_figure(summary),
}
# Each with the table that it shows; where the directions were found is always part of it.
DIRECTION_FIGURES: dict[str, tuple[Callable[..., Figure], str]] = {
    "candidates": (candidates_figure, "candidates"),
    "sites": (sites_figure, "sites"),
}


def read_table(tables: Path, name: str) -> pandas.DataFrame:
    """Return a table; names are text even where they look like numbers."""
    return pandas.read_csv(tables / f"{name}.csv", dtype=dict.fromkeys(("suite", "model", "compression", "patch"), str))


def draw(figure: str, tables: Path, patches: Patches) -> Figure:
    """Return a figure.

    Args:
        figure: its name, and of a suite's figure the suite's name after a dot, such as `refusal.safety`.
        tables: the folder of the CSV tables.
        patches: name to settings; patches that differ in alpha alone are joined where that can be seen.

    Raises:
        ValueError: no such figure or suite; the message lists those that exist.
    """
    name, _, suite = figure.partition(".")
    if name in DIRECTION_FIGURES and not suite:
        function, table = DIRECTION_FIGURES[name]
        return function(read_table(tables, table), read_table(tables, "directions"))
    if name not in SUITE_FIGURES:
        known = [*(f"{name}.SUITE" for name in SUITE_FIGURES), *DIRECTION_FIGURES]
        raise ValueError(f"there is no figure {figure}; known: {', '.join(known)}")
    summary = read_table(tables, "summary")
    suites = list(dict.fromkeys(summary["suite"]))
    if suite not in suites:
        raise ValueError(f"the tables have no suite {suite}; they have: {', '.join(suites) or 'none'}")
    return SUITE_FIGURES[name](summary[summary["suite"] == suite], patches)

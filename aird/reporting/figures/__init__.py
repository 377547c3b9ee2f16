"""Figures from the tidy tables: which there are, each with the tables that it shows.

A figure is one module of its own name in this folder, with a function `draw`, and one entry here. It is imported when
it is drawn (aird/reporting/figures/drawing.py), so that an edit of one figure draws no other again. Nothing heavy is
imported here, as the workflow reads this whenever it is parsed.

`draw` takes data frames as `aird.reporting.tables` makes them and returns a figure that belongs to nobody: no pyplot,
so no state is left behind. Values are drawn as they stand in the tables; nothing is smoothed, and what is missing is
left out. Figures are about as wide as a page (8 in = 768 px), `refusal` as a phone, and as tall as their rows need. A
patch has the same colour and marker in every figure.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """What a figure shows.

    Attributes:
        tables: the names of the tables that `draw` takes.
        of_suite: the one table is the summary, and there is a figure of each suite's rows.
        with_patches: `draw` also takes the settings of the patches, by name.
    """

    tables: tuple[str, ...]
    of_suite: bool = False
    with_patches: bool = False


FIGURES = {
    "refusal": Shown(("summary",), of_suite=True, with_patches=True),
    "frontier": Shown(("summary",), of_suite=True, with_patches=True),
    "utility": Shown(("summary",), of_suite=True),
    "candidates": Shown(("candidates", "directions")),
    "sites": Shown(("sites", "directions")),
    "restored": Shown(("restored_directions",)),
    "compensation": Shown(("compensation",)),
}


def figure_names(suites: list[str]) -> list[str]:
    """Return the names of all figures of a run; that of a suite's figure ends in the suite's: `refusal.safety`."""
    of_suites = [f"{name}.{suite}" for name, shown in FIGURES.items() if shown.of_suite for suite in suites]
    return of_suites + [name for name, shown in FIGURES.items() if not shown.of_suite]


def tables_of(figure: str) -> tuple[str, ...]:
    """Return the names of the tables that a figure shows."""
    return FIGURES[figure.partition(".")[0]].tables


def module_of(figure: str) -> str:
    """Return the module that draws a figure."""
    return f"{__name__}.{figure.partition('.')[0]}"

"""How does the error of each compensated matrix lie: along one direction, or spread over many?"""

from __future__ import annotations

import re

import pandas
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aird.reporting.figures.axes import rate_axis
from aird.reporting.figures.style import COLOURS, MARKERS, Look, note, ordered, styled, with_legend

PANELS = {"first_share": "first singular direction", "first_8_share": "first eight directions"}
HEIGHT = 1.7  # inches of a row of panels
CELL = ["model", "compression", "patch"]


@styled
def draw(compensation: pandas.DataFrame) -> Figure:
    """Draw the shares of the error by block, one row of panels per compensated checkpoint.

    Args:
        compensation: the table of that name.

    Returns:
        A figure with two axes per checkpoint, and in each one line of points per kind of matrix; x is the block.
    """
    cells = list(compensation.groupby(CELL, sort=False))
    if not cells:
        return note("no checkpoint was compensated")
    looks = _looks(ordered(map(_kind, compensation["module"])))
    figure = with_legend(HEIGHT * len(cells), [Line2D([], [], label=kind, **look) for kind, look in looks.items()])
    panels = figure.subplots(len(cells), len(PANELS), squeeze=False, sharex=True, sharey=True)
    for (cell, matrices), row in zip(cells, panels, strict=True):
        row[0].set_title(", ".join(cell))
        for axes, (share, label) in zip(row, PANELS.items(), strict=True):
            for kind, points in matrices.groupby(matrices["module"].map(_kind), sort=False):
                axes.plot(points["module"].map(_block), points[share], label=kind, **looks[kind])
            rate_axis(axes, "y", 1.0)
            axes.set_ylabel(label)
    for axes in panels[-1]:
        axes.set_xlabel("block")
    return figure


def _looks(kinds: list[str]) -> dict[str, Look]:
    turns = len(COLOURS), len(MARKERS)
    return {
        kind: {
            "color": COLOURS[index % turns[0]],
            "marker": MARKERS[index % turns[1]],
            "markersize": 4,
            "linewidth": 0.7,
        }
        for index, kind in enumerate(kinds)
    }


def _kind(module: str) -> str:
    return module.rpartition(".")[2]


def _block(module: str) -> int:
    """Return the index of a module's block: the first number in its name."""
    found = re.search(r"\.(\d+)\.", module)
    assert found, module
    return int(found[1])

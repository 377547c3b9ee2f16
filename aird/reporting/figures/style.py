"""How every figure looks: colours, markers, legends, text, and how it is written.

An edit here draws every figure again, and the report, whose panels look the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy
import pandas
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aird.settings.base import PLAIN

Patches = Mapping[str, Mapping[str, Any]]  # name to settings, as in the configuration
Look = dict[str, Any]  # keywords of matplotlib
BOUNDS = ("", "_low", "_high")  # ends of the columns of a value and of its interval

# Okabe and Ito's colours, told apart under every common colour blindness; black is kept for what
# is not patched, and yellow, faint on white, comes last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#F0E442")
BLACK = "#000000"
REFERENCE = "#555555"
BAND = "#d0d0d0"
# Shapes beside colours: a figure must also work in print.
MARKERS = ("s", "D", "^", "v", "P", "X", "<", ">")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))

STAR: Look = {"color": REFERENCE, "marker": "*", "markersize": 10}  # of the plain original
WIDTH = 8.0  # inches

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    # It ships with matplotlib, so text is measured alike everywhere; viewers without it take any
    # other sans-serif, nearly all of which are narrower.
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#666666",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    # Text stays text: it can be searched, and the file stays small.
    "svg.fonttype": "none",
    # Ids in the file are hashes; without a fixed salt they would differ in each run.
    "svg.hashsalt": "aird",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Return `draw` such that it runs under STYLE and leaves matplotlib's settings alone."""

    @functools.wraps(draw)
    def in_style(*arguments: Any, **named: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **named)

    return in_style


def write_svg(figure: Figure, path: Path | BinaryIO) -> None:
    """Write a figure as SVG; the same figure gives the same bytes."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, format="svg", metadata={"Date": None})


def patch_look(patch: str, patches: Sequence[str]) -> Look:
    """Return colour and marker of a patch, the same in all figures of one grid."""
    common = {"markersize": 5.5, "markeredgecolor": "black", "markeredgewidth": 0.5}
    if patch == PLAIN:
        return {**common, "color": BLACK, "marker": "o"}
    turn, index = divmod([name for name in patches if name != PLAIN].index(patch), len(COLOURS))
    return {**common, "color": COLOURS[index], "marker": MARKERS[(index + turn) % len(MARKERS)]}


def patch_handle(patch: str, patches: Sequence[str]) -> Line2D:
    """Return the legend's entry of a patch."""
    return Line2D([], [], linestyle="none", label=patch, **patch_look(patch, patches))


def line_look(index: int) -> Look:
    """Return colour and dashes of a compression's line."""
    # Yellow lines on white cannot be seen, so the eighth colour is black.
    colours = (*COLOURS[:-1], BLACK)
    dashes = DASHES[index // len(colours) % len(DASHES)]
    return {"color": colours[index % len(colours)], "linestyle": dashes, "linewidth": 1.6}


def with_legend(height: float, handles: Sequence[Artist], width: float = WIDTH) -> Figure:
    """Return a figure with a legend on top and `height` inches below it; the text is measured generously."""
    lengths = numpy.array([len(str(handle.get_label())) for handle in handles])
    columns = 1
    for more in range(2, len(handles) + 1):
        # Matplotlib fills column by column, the first ones with one name more.
        if sum(0.6 + 0.068 * cut.max() for cut in numpy.array_split(lengths, more)) <= width:
            columns = more
    figure = Figure(figsize=(width, height + 0.2 * -(-len(handles) // columns)), layout="constrained")
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)
    return figure


def ordered(values: Iterable[str], first: str | None = None) -> list[str]:
    """Return the distinct values in the order of the table, `first` before all others."""
    distinct = list(dict.fromkeys(values))
    return sorted(distinct, key=lambda value: value != first)


def check_one_suite(summary: pandas.DataFrame) -> None:
    """Raise a ValueError where the rows are of several suites, which would be drawn over one another."""
    suites = ordered(summary["suite"])
    if len(suites) > 1:
        raise ValueError(f"a figure shows one suite, but the rows are of {', '.join(suites)}: filter them first")


def note(text: str, width: float = WIDTH) -> Figure:
    """Return a figure that says why there is nothing to draw: the report expects a file."""
    figure = Figure(figsize=(width, 0.8))
    figure.text(0.5, 0.5, text, ha="center", va="center", color=REFERENCE)
    return figure


def not_measured(axes: Axes, **look: Any) -> None:
    """Say in the middle of a panel that it has no point."""
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=REFERENCE, **look)


def with_perplexity_ratio(summary: pandas.DataFrame) -> pandas.DataFrame:
    """Return a copy with perplexity_ratio and its bounds, relative to the plain checkpoint of each pair.

    The bounds are those of the checkpoint's own perplexity, divided by the plain value. Where
    the plain checkpoint or its perplexity is missing, the ratio is NaN.
    """
    frame = summary.copy()
    plain = summary[summary["patch"] == PLAIN].set_index(["model", "compression"])["perplexity"].to_dict()
    pairs = zip(frame["model"], frame["compression"], strict=True)
    reference = numpy.array([plain.get(pair, math.nan) for pair in pairs], dtype=float)
    for bound in BOUNDS:
        frame[f"perplexity_ratio{bound}"] = frame[f"perplexity{bound}"].astype(float) / reference
    return frame

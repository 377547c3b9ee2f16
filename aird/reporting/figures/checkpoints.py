"""Checkpoints down, values across: what figures of single rates share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from aird.reporting.figures.axes import error_lengths
from aird.reporting.figures.style import (
    REFERENCE,
    Look,
    not_measured,
    note,
    ordered,
    patch_handle,
    patch_look,
    with_legend,
)
from aird.settings.base import ORIGINAL, PLAIN

DASHED: Look = {"color": REFERENCE, "linestyle": "--", "linewidth": 1.1}
POINT_HEIGHT = 0.17  # inches per drawn row
GROUP_GAP = 0.7  # between compressions, in drawn rows


def rows_of_points(
    frame: pandas.DataFrame, labels: Mapping[str, str], lined: Sequence[str]
) -> tuple[Figure, list[list[Axes]]]:
    """Draw one row of panels per model, one panel per quantity: checkpoints down, values across.

    Down, because names of compressions are long and many, and read best as lines of text.

    Args:
        frame: model, compression, patch, and each quantity with its `_low` and `_high`.
        labels: each quantity to the label of its axis, one per panel.
        lined: the quantities of which a dashed line marks the plain original's value.

    Returns:
        The figure, and per model its panels.
    """
    models, patches = ordered(frame["model"]), ordered(frame["patch"], PLAIN)
    if not models:
        return note("no checkpoint was measured"), []
    places = {model: _places(frame[frame["model"] == model], patches) for model in models}
    spans = {model: max(places[model].values()) + 1 for model in models}
    panel_heights = [max(0.55, POINT_HEIGHT * spans[model]) for model in models]
    handles = [patch_handle(patch, patches) for patch in patches]
    if _plain_original(frame)[list(lined)].notna().any(axis=None):
        handles.append(Line2D([], [], **DASHED, label=f"{ORIGINAL}, {PLAIN}"))
    figure = with_legend(sum(panel_heights) + 0.78 * len(models) + 0.15, handles)
    panels = figure.subplots(
        len(models), len(labels), squeeze=False, sharey="row", height_ratios=panel_heights
    ).tolist()
    for model, row in zip(models, panels, strict=True):
        of_model = frame[frame["model"] == model]
        for axes, (name, label) in zip(row, labels.items(), strict=True):
            _panel_of_points(axes, of_model, places[model], patches, name, name in lined)
            axes.set_xlabel(label)
            # Of a tall panel the lower end is out of sight.
            axes.tick_params(axis="x", labeltop=spans[model] > 40)
        row[0].set_title(model)
        row[0].set_ylim(spans[model] - 0.35, -0.65)
    return figure, panels


def _plain_original(frame: pandas.DataFrame) -> pandas.DataFrame:
    return frame[(frame["compression"] == ORIGINAL) & (frame["patch"] == PLAIN)]


def _places(rows: pandas.DataFrame, patches: Sequence[str]) -> dict[tuple[str, str], float]:
    """Return (compression, patch) to its height, in rows from the top."""
    present = set(zip(rows["compression"], rows["patch"], strict=True))
    places, height = {}, 0.0
    for compression in ordered(rows["compression"], ORIGINAL):
        for patch in patches:
            if (compression, patch) in present:
                places[compression, patch] = height
                height += 1
        height += GROUP_GAP
    return places


def _panel_of_points(
    axes: Axes,
    rows: pandas.DataFrame,
    places: dict[tuple[str, str], float],
    patches: Sequence[str],
    name: str,
    with_line: bool,
) -> None:
    groups: dict[str, list[float]] = {}
    for (compression, _), height in places.items():
        groups.setdefault(compression, []).append(height)
    edge = 0.5 + GROUP_GAP / 2
    for heights in list(groups.values())[::2]:
        axes.axhspan(heights[0] - edge, heights[-1] + edge, facecolor="#f4f4f4", edgecolor="none", zorder=0)
    axes.yaxis.set_major_locator(FixedLocator([sum(heights) / len(heights) for heights in groups.values()]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda _, place: list(groups)[place or 0]))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.grid(True)
    if with_line:
        for value in _plain_original(rows)[name].dropna():
            axes.axvline(value, **DASHED, zorder=1)
    for patch in patches:
        points = rows[(rows["patch"] == patch) & rows[name].notna()]
        if points.empty:
            continue
        axes.errorbar(
            points[name],
            [places[compression, patch] for compression in points["compression"]],
            xerr=error_lengths(points, name),
            label=patch,
            linestyle="none",
            elinewidth=1.2,
            **patch_look(patch, patches),
        )
    if not rows[name].notna().any():
        # No grid line goes through the words.
        not_measured(axes, bbox={"facecolor": "white", "edgecolor": "none", "pad": 3.0})

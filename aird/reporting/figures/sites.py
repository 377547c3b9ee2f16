"""How a compressed model's directions compare with the original's, layer by layer."""

from __future__ import annotations

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from aird.reporting.figures.axes import ratio_axis
from aird.reporting.figures.style import BAND, BLACK, REFERENCE, Look, line_look, note, ordered, styled, with_legend
from aird.settings.base import ORIGINAL

DOTTED: Look = {"color": REFERENCE, "linestyle": ":", "linewidth": 1.2}


@styled
def draw(sites: pandas.DataFrame, directions: pandas.DataFrame) -> Figure:
    """Draw how each compressed model's difference in means compares with the original's, layer by layer.

    Args:
        sites: model, compression, layer, position, cosine, norm_ratio.
        directions: model, compression, layer, position; split_half_null_low and _high if known.

    Returns:
        A figure with two axes per model: one line per compression at the original's position,
        whose label is the compression's name, and faint unlabelled ones at other positions.
    """
    models, compressions = ordered(sites["model"]), ordered(sites["compression"])
    if not models:
        return note("no compressed model to compare with its original")
    # A difference of 0 (a constant token at layer 0) has no direction: its cosine means nothing.
    ratios = sites["norm_ratio"].astype(float)
    defined = numpy.isfinite(ratios) & (ratios > 0)
    shown = sites.assign(cosine=sites["cosine"].where(defined), norm_ratio=ratios.where(defined))
    handles = [Line2D([], [], label=name, **line_look(index)) for index, name in enumerate(compressions)]
    handles += [
        Line2D([], [], color=BLACK, alpha=0.25, linewidth=0.8, label="other positions"),
        Line2D([], [], **DOTTED, label="source layer"),
    ]
    bands = {model: _null_band(directions[directions["model"] == model]) for model in models}
    if any(bands.values()):
        handles.append(Line2D([], [], color=BAND, linewidth=7, label="split-half null"))
    figure = with_legend(len(models) * 2.75 + 0.2, handles)
    panels = figure.subplots(len(models), 2, squeeze=False)
    for model, (left, right) in zip(models, panels, strict=True):
        rows = shown[shown["model"] == model]
        of_model = directions[directions["model"] == model]
        original = of_model[of_model["compression"] == ORIGINAL].iloc[0]
        if band := bands[model]:
            left.axhspan(*band, facecolor=BAND, edgecolor="none", zorder=0)
        ratio_axis(right, "y", rows["norm_ratio"].to_numpy(float))
        for axes, name in ((left, "cosine"), (right, "norm_ratio")):
            axes.axvline(original["layer"], **DOTTED, zorder=1)
            for index, compression in enumerate(compressions):
                _site_lines(axes, rows[rows["compression"] == compression], name, int(original["position"]), index)
            axes.set_xlabel("layer")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.margins(x=0.02)
        left.set_ylabel("cosine with the original")
        right.set_ylabel("norm / that of the original")
        lowest = float(rows["cosine"].min()) if rows["cosine"].notna().any() else 0.0
        left.set_ylim(min(0.0, lowest - 0.05), 1.03)
        left.set_title(f"{model}, position {int(original['position'])}")
    return figure


def _site_lines(axes: Axes, rows: pandas.DataFrame, name: str, position: int, index: int) -> None:
    look = line_look(index)
    for other, line in rows.groupby("position"):
        line = line.sort_values("layer")
        if other == position:
            label = str(line["compression"].iloc[0])
            axes.plot(line["layer"], line[name], label=label, zorder=3, **look)
        else:
            axes.plot(line["layer"], line[name], zorder=2, **{**look, "alpha": 0.22, "linewidth": 0.8})


def _null_band(directions: pandas.DataFrame) -> tuple[float, float] | None:
    """Return the split-half null of a model's original, which every row of its compressions repeats."""
    if not {"split_half_null_low", "split_half_null_high"} <= set(directions.columns):
        return None
    low, high = directions["split_half_null_low"].min(), directions["split_half_null_high"].max()
    return None if pandas.isna(low) or pandas.isna(high) else (float(low), float(high))

"""Scores of all candidate directions."""

from __future__ import annotations

from typing import Any

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from aird.reporting.figures.style import WIDTH, Look, note, styled

CHOSEN: Look = {
    "marker": "o",
    "color": "black",
    "markerfacecolor": "white",
    "linestyle": "none",
    "label": "chosen site",
}
NOT_COMPUTED: Look = {"facecolor": "#e4e4e4", "edgecolor": "#aaaaaa", "hatch": "////"}


@styled
def draw(candidates: pandas.DataFrame, directions: pandas.DataFrame) -> Figure:
    """Draw the scores of all candidate directions as heat maps, one row per model and compression.

    Args:
        candidates: model, compression, layer, position, induce, kl, bypass; NaN where not computed.
        directions: model, compression and the chosen layer and position; `rule` if known.

    Returns:
        A figure with a colour bar per score and, per pair, one image per score, [positions,
        layers]; the image's label is the score's name.
    """
    pairs = list(dict.fromkeys(zip(candidates["model"], candidates["compression"], strict=True)))
    if not pairs:
        return note("no candidate direction was scored")
    # A column without any value is read as objects.
    scores = candidates.astype(dict.fromkeys(("induce", "kl", "bypass"), float))
    # Induce and bypass are the same quantity, so they share a scale.
    reach = (
        numpy.nanmax(numpy.abs(numpy.append(scores[["induce", "bypass"]].to_numpy(), numpy.nan)), initial=0.0) or 1.0
    )
    signed = Normalize(-reach, reach)
    known_kl = scores["kl"][scores["kl"] > 0]
    highest = float(known_kl.max()) if len(known_kl) else 1.0
    # Clipped: a KL that rounding made 0 or negative is still computed, and must not look missing.
    logarithmic = LogNorm(
        max(float(known_kl.min()), highest * 1e-5) if known_kl.nunique() > 1 else highest / 10,
        highest,
        clip=True,
    )
    looks: list[tuple[str, str, Normalize, str]] = [
        ("induce", "induce (refusal score)", signed, "RdBu_r"),
        ("kl", "KL (nats)", logarithmic, "viridis"),
        ("bypass", "bypass (refusal score)", signed, "RdBu_r"),
    ]
    heights = [max(0.62, 0.155 * _of_pair(scores, pair)["position"].nunique()) for pair in pairs]
    bar = 0.13
    height = sum(heights) + 0.52 * len(pairs) + bar + 1.25
    figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(hspace=0.0, h_pad=0.06))
    grid = figure.add_gridspec(1 + len(pairs), 3, height_ratios=[bar, *heights])
    images = {}
    for row, pair in enumerate(pairs):
        rows, chosen = _of_pair(scores, pair), _of_pair(directions, pair)
        for column, (name, _, norm, colours) in enumerate(looks):
            axes = figure.add_subplot(grid[1 + row, column])
            images[name] = _heat_map(axes, rows, name, norm, colours, chosen)
            axes.tick_params(labelleft=column == 0)
            if row == len(pairs) - 1:
                axes.set_xlabel("layer")
            if column == 0:
                axes.set_ylabel("position")
                axes.set_title(", ".join(pair))
            rule = chosen["rule"].iloc[0] if "rule" in chosen and len(chosen) else "published"
            if column == 2 and rule != "published":
                # COSMIC may be the rule that was asked for.
                said = "chosen by" if rule.startswith("cosmic") else "fallback:"
                axes.set_title(f"{said} {rule}", loc="right", weight="normal", style="italic")
    for column, (name, label, _, _) in enumerate(looks):
        axes = figure.add_subplot(grid[0, column])
        colour_bar = figure.colorbar(images[name], cax=axes, orientation="horizontal")
        colour_bar.outline.set_linewidth(0.5)
        if name == "kl":
            # Powers of ten would be set with exponents too small to read.
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
        axes.set_title(label, weight="normal", loc="center")
    figure.legend(
        handles=[Line2D([], [], **CHOSEN), Patch(**NOT_COMPUTED, label="not computed")],
        loc="outside upper left",
        ncols=2,
    )
    return figure


def _of_pair(frame: pandas.DataFrame, pair: tuple[str, str]) -> pandas.DataFrame:
    return frame[(frame["model"] == pair[0]) & (frame["compression"] == pair[1])]


def _heat_map(
    axes: Axes, rows: pandas.DataFrame, name: str, norm: Normalize, colours: str, chosen: pandas.DataFrame
) -> Any:
    """Draw one score over layers (x) and positions (y) and return the image."""
    values = rows.pivot(index="position", columns="layer", values=name).sort_index().sort_index(axis=1)
    first, last = values.columns[0] - 0.5, values.columns[-1] + 0.5
    lowest, top = values.index[0] - 0.5, values.index[-1] + 0.5
    # Masked cells are transparent and show this: a hatch cannot be mistaken for a value.
    axes.add_patch(Rectangle((first, lowest), last - first, top - lowest, **NOT_COMPUTED, linewidth=0, zorder=0))
    image = axes.imshow(
        numpy.ma.masked_invalid(values.to_numpy(float)),
        norm=norm,
        cmap=colours,
        aspect="auto",
        # Each cell is one pixel of an embedded picture, which stays small and is enlarged unblurred.
        interpolation="none",
        origin="lower",
        extent=(first, last, lowest, top),
        label=name,
    )
    axes.plot(chosen["layer"], chosen["position"], markersize=6, markeredgewidth=1.2, **CHOSEN)
    axes.set_xlim(first, last)
    axes.set_ylim(lowest, top)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    step = -(-len(values.index) // 5)
    axes.yaxis.set_major_locator(FixedLocator([float(value) for value in values.index[::-1][::step]]))
    axes.spines[:].set_visible(True)
    return image

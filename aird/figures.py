"""Draw figures from the tidy tables, one function per figure.

Each function takes data frames as `aird.tables` makes them and returns a figure that
belongs to nobody: no pyplot, so no state is left behind. Values are drawn as they stand
in the tables; nothing is smoothed, and what is missing is left out.

All figures are as wide as a page of the report (8 in = 768 px) and as tall as their
rows need. A patch has the same colour and marker in every figure.
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from aird.tables import PLAIN

ORIGINAL = "original"

# Okabe and Ito's colours, told apart under every common colour blindness; black is kept for what
# is not patched, and yellow, faint on white, comes last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#F0E442")
BLACK = "#000000"
REFERENCE = "#555555"
# Shapes beside colours: a figure must also work in print.
MARKERS = ("s", "D", "^", "v", "P", "X", "<", ">")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))

WIDTH = 8.0  # inches
POINT_HEIGHT = 0.17  # inches per drawn row
GROUP_GAP = 0.7  # between compressions, in drawn rows
RATE_LIMITS = {0.1: 5, 0.2: 4, 0.3: 3, 0.4: 4, 0.6: 3, 0.8: 4, 1.0: 4}  # where an axis may end, and its steps
NORMAL_QUANTILE = 1.959964  # of 0.975: a 95% interval from a standard error

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


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Return `draw` such that it runs under STYLE and leaves matplotlib's settings alone."""

    @functools.wraps(draw)
    def styled(*frames: pandas.DataFrame) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*frames)

    return styled


def write_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG; the same figure gives the same bytes."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, format="svg", metadata={"Date": None})


@_styled
def refusal_figure(summary: pandas.DataFrame) -> Figure:
    """Draw refusal of harmful and over-refusal of harmless prompts, one row of panels per model.

    Args:
        summary: the rows of one suite.

    Returns:
        A figure with two axes per model, and in each one error-bar container per patch, whose
        label is the patch's name: x is the rate, y the row of the checkpoint.
    """
    _check_one_suite(summary)
    prompts = sorted(set(summary["n"].dropna().astype(int)))
    counted = f" (n = {', '.join(map(str, prompts))})" if prompts else ""
    figure, panels = _rows_of_points(
        summary,
        [
            ("refusal", f"refusal of harmful prompts{counted}"),
            ("over_refusal", "over-refusal of harmless prompts"),
        ],
        [True, True],
    )
    for left, right in panels:
        _rate_axis(left, "x", 1.0)
        # Over-refusal is mostly small; on a full axis its differences could not be seen.
        _rate_axis(right, "x", _upper_limit(summary["over_refusal_high"]))
    return figure


@_styled
def utility_figure(summary: pandas.DataFrame) -> Figure:
    """Draw what patches do to perplexity and to task accuracy, one row of panels per model.

    Args:
        summary: the rows of one suite.

    Returns:
        A figure with two axes per model, and in each one error-bar container per patch, as in
        `refusal_figure`; x is the perplexity over that of the same compression's plain
        checkpoint, and the mean accuracy.
    """
    _check_one_suite(summary)
    frame = with_perplexity_ratio(summary)
    frame["utility_low"] = frame["utility"] - NORMAL_QUANTILE * frame["utility_stderr"]
    frame["utility_high"] = frame["utility"] + NORMAL_QUANTILE * frame["utility_stderr"]
    figure, panels = _rows_of_points(
        frame,
        [("perplexity_ratio", f"perplexity / that of {PLAIN}"), ("utility", "mean task accuracy")],
        [False, True],  # the original's ratio is 1, as every plain checkpoint's
    )
    ratios = frame[["perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high"]].to_numpy(float)
    known = ratios[numpy.isfinite(ratios) & (ratios > 0)]
    values = frame[["utility", "utility_low", "utility_high"]].to_numpy(float)
    values = values[numpy.isfinite(values)]
    for left, right in panels:
        left.axvline(1, color=REFERENCE, linewidth=0.8, zorder=1)
        _ratio_axis(left, "x", known)
        right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if values.size:
            # Positions on a line, not lengths of bars: the axis need not begin at 0.
            margin = max(0.02, 0.06 * float(numpy.ptp(values)))
            right.set_xlim(max(-0.02, values.min() - margin), min(1.02, values.max() + margin))
        right.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    return figure


def with_perplexity_ratio(summary: pandas.DataFrame) -> pandas.DataFrame:
    """Return a copy with perplexity_ratio and its bounds, relative to the plain checkpoint of each pair.

    The bounds are those of the checkpoint's own perplexity, divided by the plain value. Where
    the plain checkpoint or its perplexity is missing, the ratio is NaN.
    """
    frame = summary.copy()
    plain = summary[summary["patch"] == PLAIN].set_index(["model", "compression"])["perplexity"].to_dict()
    pairs = zip(frame["model"], frame["compression"], strict=True)
    reference = numpy.array([plain.get(pair, math.nan) for pair in pairs], dtype=float)
    for name in ("", "_low", "_high"):
        frame[f"perplexity_ratio{name}"] = frame[f"perplexity{name}"].astype(float) / reference
    return frame


@_styled
def frontier_figure(summary: pandas.DataFrame) -> Figure:
    """Draw refusal against over-refusal, one panel per model and compression.

    Args:
        summary: the rows of one suite.

    Returns:
        A figure with one axes per pair, and in each one error-bar container per patch, whose
        label is the patch's name (`original` for the star): x is over-refusal, y is refusal.
    """
    _check_one_suite(summary)
    if summary.empty:
        return _note("no checkpoint was measured")
    models, patches = _ordered(summary["model"]), _ordered(summary["patch"], PLAIN)
    lines = []  # one per row of panels; a model begins a new row
    for model in models:
        of_model = summary[summary["model"] == model]
        shown = _ordered(of_model["compression"], ORIGINAL)
        only_star = set(of_model.loc[of_model["compression"] == ORIGINAL, "patch"]) <= {PLAIN}
        if len(shown) > 1 and only_star:
            shown = [name for name in shown if name != ORIGINAL]
        columns = 2 if len(shown) in (2, 4) else 3
        lines += [[(model, name) for name in shown[start : start + columns]] for start in range(0, len(shown), columns)]
    columns = max(map(len, lines))
    names = [f"{ORIGINAL}, {PLAIN}", *patches]
    width = WIDTH if columns > 1 else 5.0
    legend = _legend_columns(names, width)
    title_lines = 2 if len(models) > 1 else 1
    panel_height = 2.0 if columns > 2 else 2.5
    height = len(lines) * (panel_height + 0.2 + 0.2 * title_lines) + 0.5 + 0.2 * -(-len(names) // legend)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.add_gridspec(len(lines), columns)
    x_limit = _upper_limit(summary["over_refusal_high"])
    for row, line in enumerate(lines):
        for column, (model, compression) in enumerate(line):
            axes = figure.add_subplot(grid[row, column])
            is_lowest = all(len(below) <= column for below in lines[row + 1 :])
            _frontier_panel(axes, summary[summary["model"] == model], compression, patches)
            title = compression if len(models) == 1 else f"{model}\n{compression}"
            axes.set_title("\n".join(textwrap.fill(part, 80 // columns) for part in title.split("\n")))
            _rate_axis(axes, "x", x_limit)
            _rate_axis(axes, "y", 1.0)
            axes.tick_params(labelleft=column == 0)
            if column == 0:
                axes.set_ylabel("refusal")
            if is_lowest:
                axes.set_xlabel("over-refusal")
    handles = [Line2D([], [], color=REFERENCE, marker="*", markersize=10, linestyle="none", label=names[0])]
    figure.legend(
        handles=handles + [_handle(patch, patches) for patch in patches],
        loc="outside upper left",
        ncols=legend,
    )
    return figure


def _frontier_panel(axes: Axes, of_model: pandas.DataFrame, compression: str, patches: Sequence[str]) -> None:
    rows = of_model[of_model["compression"] == compression]
    star = of_model[(of_model["compression"] == ORIGINAL) & (of_model["patch"] == PLAIN)]
    drawn: list[tuple[str, pandas.DataFrame, dict[str, Any]]] = [
        (ORIGINAL, star, {"color": REFERENCE, "marker": "*", "markersize": 10})
    ]
    for patch in patches:
        # The plain original is the star already.
        if (compression, patch) != (ORIGINAL, PLAIN):
            drawn.append((patch, rows[rows["patch"] == patch], _look(patch, patches)))
    for label, points, look in drawn:
        if points.empty:
            continue
        axes.errorbar(
            points["over_refusal"],
            points["refusal"],
            xerr=_distances(points, "over_refusal"),
            yerr=_distances(points, "refusal"),
            label=label,
            linestyle="none",
            elinewidth=1.0,
            **look,
        )


@_styled
def candidates_figure(candidates: pandas.DataFrame, directions: pandas.DataFrame) -> Figure:
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
        return _note("no candidate direction was scored")
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
    heights = []
    for model, compression in pairs:
        positions = scores.loc[(scores["model"] == model) & (scores["compression"] == compression), "position"]
        heights.append(max(0.62, 0.155 * positions.nunique()))
    bar = 0.13
    height = sum(heights) + 0.52 * len(pairs) + bar + 1.25
    figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(hspace=0.0, h_pad=0.06))
    grid = figure.add_gridspec(1 + len(pairs), 3, height_ratios=[bar, *heights])
    images = {}
    for row, (model, compression) in enumerate(pairs):
        rows = scores[(scores["model"] == model) & (scores["compression"] == compression)]
        chosen = directions[(directions["model"] == model) & (directions["compression"] == compression)]
        for column, (name, _, norm, colours) in enumerate(looks):
            axes = figure.add_subplot(grid[1 + row, column])
            images[name] = _heat_map(axes, rows, name, norm, colours, chosen)
            axes.tick_params(labelleft=column == 0)
            if row == len(pairs) - 1:
                axes.set_xlabel("layer")
            if column == 0:
                axes.set_ylabel("position")
                axes.set_title(f"{model}, {compression}")
            if column == 2 and "rule" in chosen and len(chosen) and chosen["rule"].iloc[0] != "published":
                axes.set_title(f"fallback: {chosen['rule'].iloc[0]}", loc="right", weight="normal", style="italic")
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
    site = Line2D([], [], marker="o", color="black", markerfacecolor="white", linestyle="none", label="chosen site")
    figure.legend(
        handles=[site, Patch(facecolor="#e4e4e4", edgecolor="#aaaaaa", hatch="////", label="not computed")],
        loc="outside upper left",
        ncols=2,
    )
    return figure


def _heat_map(
    axes: Axes, rows: pandas.DataFrame, name: str, norm: Normalize, colours: str, chosen: pandas.DataFrame
) -> Any:
    """Draw one score over layers (x) and positions (y) and return the image."""
    values = rows.pivot(index="position", columns="layer", values=name).sort_index().sort_index(axis=1)
    first, last = values.columns[0] - 0.5, values.columns[-1] + 0.5
    lowest, top = values.index[0] - 0.5, values.index[-1] + 0.5
    # Masked cells are transparent and show this: a hatch cannot be mistaken for a value.
    axes.add_patch(
        Rectangle(
            (first, lowest),
            last - first,
            top - lowest,
            facecolor="#e4e4e4",
            edgecolor="#aaaaaa",
            hatch="////",
            linewidth=0,
            zorder=0,
        )
    )
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
    axes.plot(
        chosen["layer"],
        chosen["position"],
        marker="o",
        markersize=6,
        color="black",
        markerfacecolor="white",
        markeredgewidth=1.2,
        linestyle="none",
        label="chosen site",
    )
    axes.set_xlim(first, last)
    axes.set_ylim(lowest, top)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    step = -(-len(values.index) // 5)
    axes.yaxis.set_major_locator(FixedLocator([float(value) for value in values.index[::-1][::step]]))
    axes.spines[:].set_visible(True)
    return image


@_styled
def sites_figure(sites: pandas.DataFrame, directions: pandas.DataFrame) -> Figure:
    """Draw how each compressed model's difference in means compares with the original's, layer by layer.

    Args:
        sites: model, compression, layer, position, cosine, norm_ratio.
        directions: model, compression, layer, position; split_half_null_low and _high if known.

    Returns:
        A figure with two axes per model: one line per compression at the original's position,
        whose label is the compression's name, and faint unlabelled ones at other positions.
    """
    models, compressions = _ordered(sites["model"]), _ordered(sites["compression"])
    if not models:
        return _note("no compressed model to compare with its original")
    # A difference of 0 (a constant token at layer 0) has no direction: its cosine means nothing.
    defined = numpy.isfinite(sites["norm_ratio"].astype(float)) & (sites["norm_ratio"].astype(float) > 0)
    shown = sites.assign(cosine=sites["cosine"].where(defined), norm_ratio=sites["norm_ratio"].where(defined))
    handles = [Line2D([], [], label=name, **_line_look(index)) for index, name in enumerate(compressions)]
    handles += [
        Line2D([], [], color=BLACK, alpha=0.25, linewidth=0.8, label="other positions"),
        Line2D([], [], color=REFERENCE, linestyle=":", linewidth=1.2, label="source layer"),
    ]
    bands = {model: _null_band(directions[directions["model"] == model]) for model in models}
    if any(bands.values()):
        handles.append(Line2D([], [], color="#d0d0d0", linewidth=7, label="split-half null"))
    legend = _legend_columns([str(handle.get_label()) for handle in handles], WIDTH)
    height = len(models) * 2.75 + 0.2 * -(-len(handles) // legend) + 0.2
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(len(models), 2, squeeze=False)
    for model, (left, right) in zip(models, panels, strict=True):
        rows = shown[shown["model"] == model]
        of_model = directions[directions["model"] == model]
        original = of_model[of_model["compression"] == ORIGINAL].iloc[0]
        if band := bands[model]:
            left.axhspan(*band, facecolor="#d0d0d0", edgecolor="none", zorder=0)
        right.axhline(1, color=REFERENCE, linewidth=0.8, zorder=1)
        for axes, name in ((left, "cosine"), (right, "norm_ratio")):
            axes.axvline(original["layer"], color=REFERENCE, linestyle=":", linewidth=1.2, zorder=1)
            for index, compression in enumerate(compressions):
                _site_lines(axes, rows[rows["compression"] == compression], name, int(original["position"]), index)
            axes.set_xlabel("layer")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.margins(x=0.02)
        left.set_ylabel("cosine with the original")
        right.set_ylabel("norm / that of the original")
        lowest = float(rows["cosine"].min()) if rows["cosine"].notna().any() else 0.0
        left.set_ylim(min(0.0, lowest - 0.05), 1.03)
        ratios = rows["norm_ratio"].dropna().to_numpy(float)
        _ratio_axis(right, "y", ratios)
        left.set_title(f"{model}, position {int(original['position'])}")
    figure.legend(handles=handles, loc="outside upper left", ncols=legend)
    return figure


def _site_lines(axes: Axes, rows: pandas.DataFrame, name: str, position: int, index: int) -> None:
    look = _line_look(index)
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


def _rows_of_points(
    frame: pandas.DataFrame, quantities: Sequence[tuple[str, str]], with_line: Sequence[bool]
) -> tuple[Figure, list[list[Axes]]]:
    """Draw one row of panels per model, one panel per quantity: checkpoints down, values across.

    Down, because names of compressions are long and many, and read best as lines of text.

    Args:
        frame: model, compression, patch, and each quantity with its `_low` and `_high`.
        quantities: (column, label of the axis) of each panel.
        with_line: for each quantity whether a dashed line marks the plain original's value.

    Returns:
        The figure, and per model its panels.
    """
    models, patches = _ordered(frame["model"]), _ordered(frame["patch"], PLAIN)
    if not models:
        return _note("no checkpoint was measured"), []
    places = {model: _places(frame[frame["model"] == model], patches) for model in models}
    spans = {model: max(places[model].values()) + 1 for model in models}
    panel_heights = [max(0.55, POINT_HEIGHT * spans[model]) for model in models]
    handles = [_handle(patch, patches) for patch in patches]
    plain = frame[(frame["compression"] == ORIGINAL) & (frame["patch"] == PLAIN)]
    lined = [name for (name, _), has_line in zip(quantities, with_line, strict=True) if has_line]
    if plain[lined].notna().any(axis=None):
        handles.append(Line2D([], [], color=REFERENCE, linestyle="--", linewidth=1.1, label=f"{ORIGINAL}, {PLAIN}"))
    legend = _legend_columns([str(handle.get_label()) for handle in handles], WIDTH)
    height = sum(panel_heights) + 0.78 * len(models) + 0.2 * -(-len(handles) // legend) + 0.15
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(
        len(models), len(quantities), squeeze=False, sharey="row", height_ratios=panel_heights
    ).tolist()
    for model, row in zip(models, panels, strict=True):
        of_model = frame[frame["model"] == model]
        for index, (axes, (name, label)) in enumerate(zip(row, quantities, strict=True)):
            _panel_of_points(axes, of_model, places[model], patches, name, with_line[index])
            axes.set_xlabel(label)
            # Of a tall panel the lower end is out of sight.
            axes.tick_params(axis="x", labeltop=spans[model] > 40)
        row[0].set_title(model)
        row[0].set_ylim(spans[model] - 0.35, -0.65)
    figure.legend(handles=handles, loc="outside upper left", ncols=legend)
    return figure, panels


def _places(rows: pandas.DataFrame, patches: Sequence[str]) -> dict[tuple[str, str], float]:
    """Return (compression, patch) to its height, in rows from the top."""
    present = set(zip(rows["compression"], rows["patch"], strict=True))
    places, height = {}, 0.0
    for compression in _ordered(rows["compression"], ORIGINAL):
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
    with_reference: bool,
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
    plain = rows[(rows["compression"] == ORIGINAL) & (rows["patch"] == PLAIN)]
    if with_reference and len(plain) and pandas.notna(plain[name].iloc[0]):
        axes.axvline(plain[name].iloc[0], color=REFERENCE, linestyle="--", linewidth=1.1, zorder=1)
    for patch in patches:
        points = rows[rows["patch"] == patch]
        points = points[points[name].notna()]
        if points.empty:
            continue
        axes.errorbar(
            points[name],
            [places[compression, patch] for compression in points["compression"]],
            xerr=_distances(points, name),
            label=patch,
            linestyle="none",
            elinewidth=1.2,
            **_look(patch, patches),
        )
    if not rows[name].notna().any():
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 3.0}  # no grid line through the words
        axes.text(
            0.5,
            0.5,
            "not measured",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=REFERENCE,
            bbox=ground,
        )


def _distances(points: pandas.DataFrame, name: str) -> numpy.ndarray:
    """Return the lengths of the error bars, [2, points]; 0 where a bound is not known."""
    values = points[name].to_numpy(float)
    ends = [values - points[f"{name}_low"].to_numpy(float), points[f"{name}_high"].to_numpy(float) - values]
    # At a rate of 0 or 1 rounding can put the value a hair outside its interval.
    return numpy.nan_to_num(numpy.maximum(ends, 0.0))


def _look(patch: str, patches: Sequence[str]) -> dict[str, Any]:
    """Return colour and marker of a patch, the same in all figures of one grid."""
    common = {"markersize": 5.5, "markeredgecolor": "black", "markeredgewidth": 0.5}
    if patch == PLAIN:
        return {**common, "color": BLACK, "marker": "o"}
    index = [name for name in patches if name != PLAIN].index(patch)
    return {**common, "color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _handle(patch: str, patches: Sequence[str]) -> Line2D:
    return Line2D([], [], linestyle="none", label=patch, **_look(patch, patches))


def _line_look(index: int) -> dict[str, Any]:
    # Yellow lines on white cannot be seen, so the eighth colour is black.
    colours = (*COLOURS[:-1], BLACK)
    dashes = DASHES[index // len(colours) % len(DASHES)]
    return {"color": colours[index % len(colours)], "linestyle": dashes, "linewidth": 1.6}


def _legend_columns(names: Sequence[str], width: float) -> int:
    """Return how many columns of a legend fit into `width` inches; the text is measured generously."""
    for columns in range(len(names), 1, -1):
        # Matplotlib fills column by column, the first ones with one name more.
        cuts = numpy.array_split(numpy.array([len(name) for name in names]), columns)
        if sum(0.6 + 0.068 * cut.max() for cut in cuts) <= width:
            return columns
    return 1


def _rate_axis(axes: Axes, which: str, upper: float) -> None:
    """Make an axis show a rate from 0 to `upper` in percent, with room for markers at both ends."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    margin = 0.03 * upper
    (axes.set_xlim if which == "x" else axes.set_ylim)(-margin, upper + margin)
    steps = RATE_LIMITS[upper]
    axis.set_major_locator(FixedLocator([upper * step / steps for step in range(steps + 1)]))
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.grid(True)


def _upper_limit(bounds: pandas.Series) -> float:
    """Return where an axis of rates ends: the first of some round values that holds all bounds."""
    highest = bounds.max()
    return next((limit for limit in RATE_LIMITS if highest <= limit), 1.0)


def _ratio_axis(axes: Axes, which: str, values: numpy.ndarray) -> None:
    """Scale an axis of ratios around 1: linear while they are close, else logarithmic."""
    low, high = (min(1.0, values.min()), max(1.0, values.max())) if values.size else (1.0, 1.0)
    set_limits = axes.set_xlim if which == "x" else axes.set_ylim
    axis = axes.xaxis if which == "x" else axes.yaxis
    if high <= 3 * low:
        margin = max(0.02, 0.06 * (high - low))
        set_limits(low - margin, high + margin)
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        return
    margin = (high / low) ** 0.06
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    set_limits(low / margin, high * margin)
    # Matplotlib's own labels of a short logarithmic axis are powers with exponents, and few.
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    inside = [mark for mark in marks if low / margin <= mark <= high * margin]
    if len(inside) > 6:
        step = -(-len(decades) // 6)
        inside = [10.0**decade for decade in decades if decade % step == 0]
    axis.set_major_locator(FixedLocator(inside))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _ordered(values: Iterable[str], first: str | None = None) -> list[str]:
    """Return the distinct values in the order of the table, `first` before all others."""
    distinct = list(dict.fromkeys(values))
    return sorted(distinct, key=lambda value: value != first)


def _check_one_suite(summary: pandas.DataFrame) -> None:
    suites = _ordered(summary["suite"])
    if len(suites) > 1:
        raise ValueError(f"a figure shows one suite, but the rows are of {', '.join(suites)}: filter them first")


def _note(text: str) -> Figure:
    """Return a figure that says why there is nothing to draw: the report expects a file."""
    figure = Figure(figsize=(WIDTH, 0.8))
    figure.text(0.5, 0.5, text, ha="center", va="center", color=REFERENCE)
    return figure

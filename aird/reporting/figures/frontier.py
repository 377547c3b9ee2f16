"""What a repair buys and what it costs: refusal against over-refusal and against perplexity.

Patches that differ in nothing but their strength alpha are one curve. Where a formula gives the edit, it begins at the
plain checkpoint: that is the patch of strength 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aird.plugin import METHODS
from aird.reporting.figures.axes import error_lengths, rate_axis, ratio_axis, upper_limit, with_bounds
from aird.reporting.figures.style import (
    REFERENCE,
    STAR,
    Look,
    Patches,
    check_one_suite,
    not_measured,
    note,
    ordered,
    patch_look,
    styled,
    with_perplexity_ratio,
)
from aird.settings.base import ORIGINAL, PLAIN
from aird.settings.patches import FormulaSettings

PANEL_HEIGHT, TITLE_HEIGHT = 2.7, 0.35  # inches
LEFT, PLOT_WIDTH, BOTTOM, LABELS = 0.62, 2.3, 0.5, 0.3
COSTS = {"over_refusal": "over-refusal of harmless prompts", "perplexity_ratio": f"perplexity / that of {PLAIN}"}
LINE = 0.085  # height of a line of labels, as a share of the axes


def sweeps(patches: Patches) -> list[list[str]]:
    """Return the patches that differ in alpha alone, each group in the order of alpha.

    Args:
        patches: name to settings, as in the configuration.
    """
    groups: dict[str, list[tuple[float, str]]] = {}
    for name, settings in patches.items():
        if "alpha" not in settings:  # methods without a strength of their own
            continue
        others = {key: value for key, value in settings.items() if key not in ("alpha", "compressions")}
        groups.setdefault(json.dumps(others, sort_keys=True), []).append((settings["alpha"], name))
    return [[name for _, name in sorted(group)] for group in groups.values() if len(group) > 1]


@styled
def draw(summary: pandas.DataFrame, patches: Patches) -> Figure:
    """Draw all panels of a suite: one row per model and compression, one column per cost.

    Args:
        summary: the rows of one suite.
        patches: name to settings; patches that differ in alpha alone are joined.

    Returns:
        A figure with two axes per pair; in each one error-bar container per patch, whose label is
        the patch's name (`original` for the star): x is the cost, y is refusal.
    """
    check_one_suite(summary)
    pairs = frontier_pairs(summary)
    if not pairs:
        return note("no checkpoint was measured")
    several = summary["model"].nunique() > 1
    width, height = _panel_width(summary, patches), PANEL_HEIGHT + TITLE_HEIGHT
    figure = Figure(figsize=(2 * width, height * len(pairs)))
    for index, (model, compression) in enumerate(pairs):
        bottom = height * (len(pairs) - 1 - index)
        for column, cost in enumerate(COSTS):
            axes = _panel(figure, (column * width, bottom), summary, (model, compression), cost, patches)
            axes.set_title(f"{model}, {compression}" if several else compression)
    return figure


@styled
def frontier_panel(summary: pandas.DataFrame, pair: tuple[str, str], cost: str, patches: Patches) -> Figure:
    """Draw one panel by itself, small enough for a phone.

    Args:
        summary: the rows of one suite.
        pair: model and compression.
        cost: `over_refusal` or `perplexity_ratio`.
        patches: as in `draw`.
    """
    figure = Figure(figsize=(_panel_width(summary, patches), PANEL_HEIGHT))
    _panel(figure, (0, 0), summary, pair, cost, patches)
    return figure


def _panel_width(summary: pandas.DataFrame, patches: Patches) -> float:
    """Return the width of a panel with the names beside it, in inches; the text is measured generously."""
    longest = max(len(_label(name, patches)) for name in [ORIGINAL, *summary["patch"]])
    return LEFT + PLOT_WIDTH + LABELS + 0.07 * longest


def _add_axes(figure: Figure, corner: tuple[float, float]) -> Axes:
    """Add the axes of a panel whose lower left corner is there, in inches."""
    total_width, total_height = figure.get_size_inches()
    return figure.add_axes(
        (
            (corner[0] + LEFT) / total_width,
            (corner[1] + BOTTOM) / total_height,
            PLOT_WIDTH / total_width,
            (PANEL_HEIGHT - BOTTOM - 0.08) / total_height,
        )
    )


def frontier_pairs(summary: pandas.DataFrame) -> list[tuple[str, str]]:
    """Return the (model, compression) pairs that have a panel.

    The original has one only where it is patched, or where there is nothing else.
    """
    pairs = []
    for model in ordered(summary["model"]):
        rows = summary[summary["model"] == model]
        shown = ordered(rows["compression"], ORIGINAL)
        if len(shown) > 1 and set(rows.loc[rows["compression"] == ORIGINAL, "patch"]) <= {PLAIN}:
            shown = [name for name in shown if name != ORIGINAL]
        pairs += [(model, compression) for compression in shown]
    return pairs


def _panel(
    figure: Figure,
    corner: tuple[float, float],
    summary: pandas.DataFrame,
    pair: tuple[str, str],
    cost: str,
    patches: Patches,
) -> Axes:
    """Draw the panel of a pair whose lower left corner is there, in inches."""
    axes = _add_axes(figure, corner)
    model, compression = pair
    names = ordered(summary["patch"], PLAIN)
    frame = with_perplexity_ratio(summary)
    of_model = frame[frame["model"] == model]
    rows = of_model[of_model["compression"] == compression].set_index("patch", drop=False)
    rows = rows[rows[cost].notna() & rows["refusal"].notna()]
    star = of_model[(of_model["compression"] == ORIGINAL) & (of_model["patch"] == PLAIN)]
    labels: list[tuple[float, float, str, Look]] = []
    if len(star):
        reference = star.iloc[0]
        axes.axhline(reference["refusal"], color=REFERENCE, linestyle="--", linewidth=1.0, zorder=1)
        # The original's perplexity is that of another checkpoint: only its refusal is a mark there.
        if cost == "over_refusal":
            _point(axes, star, cost, ORIGINAL, STAR)
        labels.append((math.nan, reference["refusal"], ORIGINAL, STAR))
    for group in sweeps(patches):
        method = METHODS.load(patches[group[0]]["method"])
        start = [PLAIN] if issubclass(method.settings, FormulaSettings) else []
        line = rows.loc[[name for name in [*start, *group] if name in rows.index]]
        if len(line) > 1:
            colour = patch_look(line["patch"].iloc[-1], names)["color"]
            axes.plot(line[cost], line["refusal"], color=colour, linewidth=1.2, alpha=0.55, zorder=1.5)
    for name in names:
        # The plain original is the star already.
        if name not in rows.index or ((compression, name) == (ORIGINAL, PLAIN) and cost == "over_refusal"):
            continue
        look = patch_look(name, names)
        point = rows.loc[[name]]
        _point(axes, point, cost, name, look)
        labels.append((float(point[cost].iloc[0]), float(point["refusal"].iloc[0]), _label(name, patches), look))
    if cost == "over_refusal":
        rate_axis(axes, "x", upper_limit(summary["over_refusal_high"]))
    else:
        ratio_axis(axes, "x", with_bounds(frame, cost))
    rate_axis(axes, "y", 1.0)
    axes.set_ylabel("refusal")
    axes.set_xlabel(COSTS[cost])
    if rows.empty:
        not_measured(axes)
    _write_labels(axes, labels)
    return axes


def _label(name: str, patches: Patches) -> str:
    """Return a patch's name, with its strength where that tells it from others and the name does not say it."""
    if not any(name in group for group in sweeps(patches)):
        return name
    strength = f"{patches[name]['alpha']:g}"
    return name if strength in name else f"{name}, α = {strength}"


def _point(axes: Axes, row: pandas.DataFrame, cost: str, label: str, look: Look) -> None:
    axes.errorbar(
        row[cost],
        row["refusal"],
        xerr=error_lengths(row, cost),
        yerr=error_lengths(row, "refusal"),
        label=label,
        linestyle="none",
        elinewidth=1.0,
        **look,
    )


def _write_labels(axes: Axes, labels: Sequence[tuple[float, float, str, Look]]) -> None:
    """Write the name of each point to the right of the axes, in the order of height, with a thin line to it.

    Args:
        labels: x (NaN for a line across the axes), y, text and look of each point.
    """
    low, high = axes.get_ylim()
    chosen = sorted(labels, key=lambda label: label[1])
    heights = _spread([(y - low) / (high - low) for _, y, _, _ in chosen])
    beside: Look = {"transform": axes.transAxes, "clip_on": False}
    for (x, y, text, look), height in zip(chosen, heights, strict=True):
        start = (y - low) / (high - low)
        end = 1.0 if math.isnan(x) else float(axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[0])
        line = {"color": look["color"], "linewidth": 0.6, "alpha": 0.5, "zorder": 0.5}
        axes.plot([end, 1.0, 1.045], [start, start, height], **beside, **line)
        axes.plot([1.07], [height], **beside, **look)
        # Text in black: some colours are too faint for it.
        axes.text(1.11, height, text, transform=axes.transAxes, va="center", fontsize=8)


def _spread(heights: Sequence[float]) -> list[float]:
    """Return ascending heights moved apart, each as little as that takes, and kept within the axes if they fit."""
    placed: list[list[float]] = []  # groups of heights that touch
    for height in heights:
        placed.append([height])
        while len(placed) > 1 and _top(placed[-2]) + LINE > _bottom(placed[-1]):
            last = placed.pop()
            placed[-1] += last
    result = []
    for group in placed:
        start = min(max(_bottom(group), 0.0), max(0.0, 1.0 - LINE * (len(group) - 1)))
        result += [start + LINE * index for index in range(len(group))]
    return result


def _bottom(group: Sequence[float]) -> float:
    return sum(group) / len(group) - LINE * (len(group) - 1) / 2


def _top(group: Sequence[float]) -> float:
    return sum(group) / len(group) + LINE * (len(group) - 1) / 2

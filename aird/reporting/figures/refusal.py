"""The finding in one picture: each compression's line from the original through the compressed to the repaired one."""

from __future__ import annotations

from collections.abc import Sequence

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from aird.reporting.figures.axes import error_lengths, rate_axis
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
    with_legend,
)
from aird.reporting.names import repair_of
from aird.settings.base import ORIGINAL, PLAIN

PHONE = 3.6  # inches: as wide as the text of a page on a phone
ROW = 0.13  # inches per checkpoint
COMPRESSED = "compressed"
PANELS = {"refusal": "harmful prompts", "over_refusal": "harmless prompts"}
Stages = dict[str, pandas.Series]  # what a checkpoint is called in the legend, to its row of the summary


@styled
def draw(summary: pandas.DataFrame, patches: Patches) -> Figure:
    """Draw how many harmful and harmless prompts are refused, one row of two panels per model.

    Args:
        summary: the rows of one suite.
        patches: name to settings; the repair is the patch that the sentences of the finding tell of.

    Returns:
        A figure with two axes per model. Each has one error-bar container per checkpoint, whose label is the legend's:
        x is the rate, y the row of the checkpoint.
    """
    check_one_suite(summary)
    models = ordered(summary["model"])
    if not models:
        return note("no checkpoint was measured", PHONE)
    lines = {model: _lines(summary[summary["model"] == model], patches) for model in models}
    names = ordered(summary["patch"], PLAIN)
    looks = {
        stage: _look(stage, row["patch"], names)
        for of_model in lines.values()
        for stages in of_model.values()
        for stage, row in stages.items()
    }
    rows = [sum(len(stages) + 2 for stages in of_model.values()) for of_model in lines.values()]
    handles = [Line2D([], [], linestyle="none", label=stage, **look) for stage, look in looks.items()]
    figure = with_legend(ROW * sum(rows) + 0.7 * len(models), handles, PHONE)
    panels = figure.subplots(len(models), 2, squeeze=False, sharey="row", height_ratios=rows).tolist()
    for model, row, height in zip(models, panels, rows, strict=True):
        for axes, (rate, prompts) in zip(row, PANELS.items(), strict=True):
            _panel(axes, lines[model], rate, looks)
            axes.set_title(prompts)
            # Of a tall panel the lower end is out of sight.
            axes.tick_params(axis="x", labeltop=height > 40, top=False)
        row[0].set_ylim(height - 0.5, -0.8)
        if len(models) > 1:
            row[0].set_title(f"{model}\n{PANELS['refusal']}")
    return figure


def _lines(rows: pandas.DataFrame, patches: Patches) -> dict[str, Stages]:
    """Return each compression's checkpoints: the original, the compressed one and the repaired one, as far as measured.

    A model without a compression has the original alone.

    Args:
        rows: of one model and suite.
        patches: name to settings.
    """
    plain = rows[rows["patch"] == PLAIN].set_index("compression", drop=False)
    original = {ORIGINAL: plain.loc[ORIGINAL]} if ORIGINAL in plain.index else {}
    lines: dict[str, Stages] = {}
    for name in ordered(rows["compression"]):
        if name == ORIGINAL:
            continue
        lines[name] = dict(original)
        if name in plain.index:
            lines[name][COMPRESSED] = plain.loc[name]
        repaired = repair_of(rows[rows["compression"] == name], patches)
        if repaired is not None:
            lines[name][f"with {repaired['patch']}"] = repaired
    return lines or {ORIGINAL: dict(original)}


def _look(stage: str, patch: str, patches: Sequence[str]) -> Look:
    """Return colour and marker of a checkpoint, small, as most intervals are short here."""
    if stage == ORIGINAL:
        return {**STAR, "markersize": 7}
    return {**patch_look(patch, patches), "markersize": 4.5}


def _panel(axes: Axes, lines: dict[str, Stages], rate: str, looks: dict[str, Look]) -> None:
    """Draw a panel: below the name of each compression its line."""
    rate_axis(axes, "x", 1.0)
    axes.xaxis.set_major_locator(FixedLocator([0.0, 0.5, 1.0]))
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    counts = sorted({int(row["n"]) for stages in lines.values() for row in stages.values() if row["n"] == row["n"]})
    counted = f" (n = {', '.join(map(str, counts))})" if counts and rate == "refusal" else ""
    axes.set_xlabel(f"refused{counted}")
    top = 0
    for index, (name, stages) in enumerate(lines.items()):
        bottom = top + len(stages) + 2
        if index % 2 == 0:
            axes.axhspan(top - 0.8, bottom - 0.8, facecolor="#f4f4f4", edgecolor="none", zorder=0)
        if rate == "refusal":
            # Above its line there is room for a long name, which may go on over the other panel.
            place = axes.get_yaxis_transform()
            axes.text(0, top, name, transform=place, va="center", zorder=5, in_layout=False)
        frame = pandas.DataFrame(list(stages.values())).assign(stage=list(stages), height=range(top + 1, bottom - 1))
        frame = frame[frame[rate].notna()]
        axes.plot(frame[rate], frame["height"], color=REFERENCE, linewidth=1.2, zorder=1.5)
        for stage, point in frame.groupby("stage", sort=False):
            bars = error_lengths(point, rate)
            axes.errorbar(
                point[rate], point["height"], xerr=bars, label=str(stage), linestyle="none", **looks[str(stage)]
            )
        top = bottom
    if not axes.containers:
        not_measured(axes)

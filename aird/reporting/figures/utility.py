"""What patches cost: perplexity and task accuracy."""

from __future__ import annotations

import numpy
import pandas
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from aird.reporting.figures.axes import ratio_axis
from aird.reporting.figures.checkpoints import rows_of_points
from aird.reporting.figures.style import REFERENCE, check_one_suite, styled, with_perplexity_ratio
from aird.reporting.tables import PLAIN

NORMAL_QUANTILE = 1.959964  # of 0.975: a 95% interval from a standard error


@styled
def utility_figure(summary: pandas.DataFrame) -> Figure:
    """Draw what patches do to perplexity and to task accuracy, one row of panels per model.

    Args:
        summary: the rows of one suite.

    Returns:
        A figure with two axes per model, and in each one error-bar container per patch, as in
        `refusal_figure`; x is the perplexity over that of the same compression's plain
        checkpoint, and the mean accuracy.
    """
    check_one_suite(summary)
    frame = with_perplexity_ratio(summary)
    frame["utility_low"] = frame["utility"] - NORMAL_QUANTILE * frame["utility_stderr"]
    frame["utility_high"] = frame["utility"] + NORMAL_QUANTILE * frame["utility_stderr"]
    figure, panels = rows_of_points(
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
        ratio_axis(left, "x", known)
        right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if values.size:
            # Positions on a line, not lengths of bars: the axis need not begin at 0.
            margin = max(0.02, 0.06 * float(numpy.ptp(values)))
            right.set_xlim(max(-0.02, values.min() - margin), min(1.02, values.max() + margin))
        right.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    return figure

"""What patches cost: perplexity and task accuracy."""

from __future__ import annotations

import numpy
import pandas
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from aird.reporting.figures.axes import ratio_axis, with_bounds
from aird.reporting.figures.checkpoints import rows_of_points
from aird.reporting.figures.style import check_one_suite, styled, with_perplexity_ratio
from aird.settings.base import PLAIN

NORMAL_QUANTILE = 1.959964  # of 0.975: a 95% interval from a standard error


@styled
def draw(summary: pandas.DataFrame) -> Figure:
    """Draw what patches do to perplexity and to task accuracy, one row of panels per model.

    Args:
        summary: the rows of one suite.

    Returns:
        A figure with two axes per model, and in each one error-bar container per patch, as in
        the figure `refusal`; x is the perplexity over that of the same compression's plain
        checkpoint, and the mean accuracy.
    """
    check_one_suite(summary)
    frame = with_perplexity_ratio(summary)
    frame["utility_low"] = frame["utility"] - NORMAL_QUANTILE * frame["utility_stderr"]
    frame["utility_high"] = frame["utility"] + NORMAL_QUANTILE * frame["utility_stderr"]
    labels = {"perplexity_ratio": f"perplexity / that of {PLAIN}", "utility": "mean task accuracy"}
    # The original's ratio is 1, as every plain checkpoint's: only its accuracy is a line.
    figure, panels = rows_of_points(frame, labels, lined=["utility"])
    values = with_bounds(frame, "utility")
    values = values[numpy.isfinite(values)]
    for left, right in panels:
        ratio_axis(left, "x", with_bounds(frame, "perplexity_ratio"))
        right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if values.size:
            # Positions on a line, not lengths of bars: the axis need not begin at 0.
            margin = max(0.02, 0.06 * float(numpy.ptp(values)))
            right.set_xlim(max(-0.02, values.min() - margin), min(1.02, values.max() + margin))
        right.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    return figure

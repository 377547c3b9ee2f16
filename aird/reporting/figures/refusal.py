"""Refusal of harmful prompts, and over-refusal of harmless ones."""

from __future__ import annotations

import pandas
from matplotlib.figure import Figure

from aird.reporting.figures.axes import rate_axis, upper_limit
from aird.reporting.figures.checkpoints import rows_of_points
from aird.reporting.figures.style import check_one_suite, styled


@styled
def draw(summary: pandas.DataFrame) -> Figure:
    """Draw refusal of harmful and over-refusal of harmless prompts, one row of panels per model.

    Args:
        summary: the rows of one suite.

    Returns:
        A figure with two axes per model, and in each one error-bar container per patch, whose
        label is the patch's name: x is the rate, y the row of the checkpoint.
    """
    check_one_suite(summary)
    prompts = sorted(set(summary["n"].dropna().astype(int)))
    counted = f" (n = {', '.join(map(str, prompts))})" if prompts else ""
    labels = {"refusal": f"refusal of harmful prompts{counted}", "over_refusal": "over-refusal of harmless prompts"}
    figure, panels = rows_of_points(summary, labels, lined=["refusal", "over_refusal"])
    for left, right in panels:
        rate_axis(left, "x", 1.0)
        # Over-refusal is mostly small; on a full axis its differences could not be seen.
        rate_axis(right, "x", upper_limit(summary["over_refusal_high"]))
    return figure

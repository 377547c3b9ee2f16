"""Does the original's refusal direction come back in patched checkpoints?"""

from __future__ import annotations

import pandas
from matplotlib.figure import Figure

from aird.reporting.figures.axes import rate_axis, ratio_axis, with_bounds
from aird.reporting.figures.checkpoints import rows_of_points
from aird.reporting.figures.style import styled

PANELS = {
    "corrected_cosine": "cosine with the original",
    "norm_ratio": "norm / that of the original",
    "refusal_harmful_ablated": "refusal with r ablated",
}


@styled
def draw(restored: pandas.DataFrame) -> Figure:
    """Draw the comparison of patched checkpoints with the original, one row of panels per model.

    Args:
        restored: the table `restored_directions`.

    Returns:
        A figure with three axes per model, and in each one error-bar container per patch, as in the figure `refusal`;
        x is the corrected cosine and the norm ratio at the original's site, and the refusal of held-out harmful
        prompts with the original's direction ablated.
    """
    figure, panels = rows_of_points(restored, PANELS, lined=list(PANELS))
    lowest = restored["corrected_cosine_low"].min()
    for cosine, ratio, refusal in panels:
        cosine.set_xlim(min(0.0, lowest - 0.05) if pandas.notna(lowest) else 0.0, 1.05)
        ratio_axis(ratio, "x", with_bounds(restored, "norm_ratio"))
        rate_axis(refusal, "x", 1.0)
    return figure

"""Draw figures from the tidy tables, one function per figure.

Each function takes data frames as `aird.reporting.tables` makes them and returns a figure that
belongs to nobody: no pyplot, so no state is left behind. Values are drawn as they stand
in the tables; nothing is smoothed, and what is missing is left out.

All figures are about as wide as a page (8 in = 768 px) and as tall as their rows need. A patch
has the same colour and marker in every figure.
"""

from aird.reporting.figures.candidates import candidates_figure
from aird.reporting.figures.drawing import draw, read_table
from aird.reporting.figures.frontier import frontier_figure, frontier_pairs, frontier_panel
from aird.reporting.figures.refusal import refusal_figure
from aird.reporting.figures.sites import sites_figure
from aird.reporting.figures.style import write_svg
from aird.reporting.figures.utility import utility_figure

__all__ = [
    "candidates_figure",
    "draw",
    "frontier_figure",
    "frontier_pairs",
    "frontier_panel",
    "read_table",
    "refusal_figure",
    "sites_figure",
    "utility_figure",
    "write_svg",
]

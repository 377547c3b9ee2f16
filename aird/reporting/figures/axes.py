"""Axes of rates and of ratios, and error bars: what the figures of rates and costs share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from aird.reporting.figures.style import BOUNDS, REFERENCE

RATE_LIMITS = {0.1: 5, 0.2: 4, 0.3: 3, 0.4: 4, 0.6: 3, 0.8: 4, 1.0: 4}  # where an axis may end, and its steps


def with_bounds(points: pandas.DataFrame, name: str) -> numpy.ndarray:
    """Return a value of each point and the ends of its interval, [points, 3]."""
    bounds: numpy.ndarray = points[[f"{name}{bound}" for bound in BOUNDS]].to_numpy(float)
    return bounds


def error_lengths(points: pandas.DataFrame, name: str) -> numpy.ndarray:
    """Return the lengths of the error bars, [2, points]; 0 where a bound is not known."""
    values, low, high = with_bounds(points, name).T
    # At a rate of 0 or 1 rounding can put the value a hair outside its interval.
    return numpy.nan_to_num(numpy.maximum([values - low, high - values], 0.0))


def _parts(axes: Axes, which: str) -> tuple[Any, Callable[..., Any]]:
    """Return the axis `x` or `y`, and what sets its limits."""
    return getattr(axes, f"{which}axis"), getattr(axes, f"set_{which}lim")


def rate_axis(axes: Axes, which: str, upper: float) -> None:
    """Make an axis show a rate from 0 to `upper` in percent, with room for markers at both ends."""
    axis, set_limits = _parts(axes, which)
    margin = 0.03 * upper
    set_limits(-margin, upper + margin)
    steps = RATE_LIMITS[upper]
    axis.set_major_locator(FixedLocator([upper * step / steps for step in range(steps + 1)]))
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.grid(True)


def upper_limit(bounds: pandas.Series) -> float:
    """Return where an axis of rates ends: the first of some round values that holds all bounds."""
    highest = bounds.max()
    return next((limit for limit in RATE_LIMITS if highest <= limit), 1.0)


def ratio_axis(axes: Axes, which: str, values: numpy.ndarray) -> None:
    """Draw a line at the ratio 1, and scale the axis around it: linear while ratios are close, else logarithmic.

    Args:
        axes: of the panel.
        which: the axis, `x` or `y`.
        values: of which those that are no number, or not above 0, do not count.
    """
    (axes.axvline if which == "x" else axes.axhline)(1, color=REFERENCE, linewidth=0.8, zorder=1)
    known = values[numpy.isfinite(values) & (values > 0)]
    low, high = known.min(initial=1.0), known.max(initial=1.0)
    axis, set_limits = _parts(axes, which)
    if high <= 3 * low:
        margin = max(0.02, 0.06 * (high - low))
        set_limits(low - margin, high + margin)
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        return
    margin = (high / low) ** 0.06
    getattr(axes, f"set_{which}scale")("log")
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

"""Axes of rates and of ratios, and error bars."""

from __future__ import annotations

import math

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

RATE_LIMITS = {0.1: 5, 0.2: 4, 0.3: 3, 0.4: 4, 0.6: 3, 0.8: 4, 1.0: 4}  # where an axis may end, and its steps


def error_lengths(points: pandas.DataFrame, name: str) -> numpy.ndarray:
    """Return the lengths of the error bars, [2, points]; 0 where a bound is not known."""
    values = points[name].to_numpy(float)
    ends = [values - points[f"{name}_low"].to_numpy(float), points[f"{name}_high"].to_numpy(float) - values]
    # At a rate of 0 or 1 rounding can put the value a hair outside its interval.
    return numpy.nan_to_num(numpy.maximum(ends, 0.0))


def rate_axis(axes: Axes, which: str, upper: float) -> None:
    """Make an axis show a rate from 0 to `upper` in percent, with room for markers at both ends."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    margin = 0.03 * upper
    (axes.set_xlim if which == "x" else axes.set_ylim)(-margin, upper + margin)
    steps = RATE_LIMITS[upper]
    axis.set_major_locator(FixedLocator([upper * step / steps for step in range(steps + 1)]))
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.grid(True)


def upper_limit(bounds: pandas.Series) -> float:
    """Return where an axis of rates ends: the first of some round values that holds all bounds."""
    highest = bounds.max()
    return next((limit for limit in RATE_LIMITS if highest <= limit), 1.0)


def ratio_axis(axes: Axes, which: str, values: numpy.ndarray) -> None:
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

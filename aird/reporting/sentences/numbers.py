"""Numbers in words, and the rows of the tables that they come from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas

from aird.settings.base import ORIGINAL
from aird.support.statistics import SIGNIFICANT, Estimate, PairedComparison

Configuration = Mapping[str, Any]


def parts_of(
    summary: pandas.DataFrame, paired: pandas.DataFrame
) -> Iterator[tuple[str, pandas.DataFrame, pandas.DataFrame]]:
    """Yield, per suite and model, what it is called, and its rows of both tables."""
    for (suite, model), rows in summary.groupby(["suite", "model"], sort=False):
        yield f"{model}, suite {suite}", rows, paired[(paired.suite == suite) & (paired.model == model)]


def compressions_of(rows: pandas.DataFrame) -> Iterator[pandas.DataFrame]:
    """Yield the rows of each compression of a model."""
    for compression, of_compression in rows.groupby("compression", sort=False):
        if compression != ORIGINAL:
            yield of_compression


def rate_of(row: pandas.Series, name: str = "refusal", more: str = "") -> str:
    """Return a rate with its interval, and what else belongs into the brackets."""
    low, high = (f"{100 * row[f'{name}_{bound}']:.0f}" for bound in ("low", "high"))
    return f"{whole_percent(row[name])} ({low} to {high}%{f', {more}' if more else ''})"


def p_value_text(value: float) -> str:
    """Return a p-value, and whether it is significant where it is not."""
    text = "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
    return text if value < SIGNIFICANT else f"not significant, {text}"


def whole_percent(rate: float) -> str:
    """Return a rate in whole per cent, halves rounded up, but never 0% or 100% of what is not."""
    text = f"{math.floor(100 * rate + 0.5):d}%"
    return text if text not in ("0%", "100%") or rate in (0, 1) else percent(rate)


def percent(rate: float) -> str:
    """Return a rate as per cent with one decimal."""
    return f"{100 * rate:.1f}%"


def paired_test(tests: pandas.DataFrame, row: pandas.Series, against: str, rate: str = "refusal") -> pandas.Series:
    """Return the paired test of a checkpoint against its original or its plain form (`against`)."""
    chosen = tests[
        (tests.compression == row.compression)
        & (tests.patch == row.patch)
        & (tests.against == against)
        & (tests.rate == rate)
    ]
    return chosen.iloc[0]


def difference_of(test: pandas.Series) -> Estimate:
    """Return the difference that a row of the paired tests is about, with its interval."""
    return PairedComparison(test.n, math.nan, math.nan, test.lost, test.gained).difference


def points(difference: float) -> str:
    """Return a difference of rates in points, with its sign."""
    return f"{100 * difference:+.1f}"

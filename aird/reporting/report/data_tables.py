"""Data frames as the rows and cells of the page's tables, whose numbers are shown short and sorted by all digits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas

MOST_ROWS = 3000  # of one table; more would make the page slow, and stand in its CSV file


@dataclass(frozen=True)
class Cell:
    """One value: what is shown, and what it is sorted by."""

    text: str
    key: str


@dataclass(frozen=True)
class Table:
    """A table ready for the page."""

    name: str
    columns: list[tuple[str, bool]]  # name, and whether it holds numbers
    rows: list[list[Cell]]
    total: int


def html_table(name: str, frame: pandas.DataFrame) -> Table:
    """Return a data frame as a table of cells, the first MOST_ROWS rows of it."""
    shown = frame.head(MOST_ROWS)
    rows = [[_cell(value) for value in row] for row in shown.itertuples(index=False, name=None)]
    numbers = set(frame.select_dtypes("number"))  # truth values are none
    columns = [(str(column), column in numbers) for column in frame]
    return Table(name, columns, rows, len(frame))


def _cell(value: object) -> Cell:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Cell("", "")
    if isinstance(value, float):
        return Cell(short_number(value), repr(float(value)))
    return Cell(str(value), str(value))


def short_number(value: float) -> str:
    """Return a number with four significant digits, and without an exponent unless it is very small or large."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.2e}"
    if float(value).is_integer():
        return f"{value:.0f}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"

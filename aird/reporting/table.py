"""What every table says of itself: the records that it reads, its rows and its columns (aird/reporting/tables/).

A row is a mapping: the names of its cell, and whatever the columns take their values from, such as whole records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aird.reporting.records import Records

Row = Mapping[str, Any]
KEYS = ("model", "compression", "patch", "suite")  # the parts of a record's key, in this order
INTERVAL = {"": "value", "_low": "low", "_high": "high"}  # ends of the columns of a value and of its interval


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: in the CSV file.
        value: takes the value out of a row; without it the row has it under the column's name. None is an empty cell.
        says: what it means, for the page that describes all columns; columns side by side with one text are described
            together.
        dtype: pandas' type, where whole numbers or truth values may be missing: Int64, boolean.
        optional: leave the column out where it has no value in any row; NaN is a value.
    """

    name: str
    value: Callable[[Row], object] | None = None
    says: str = ""
    dtype: str | None = None
    optional: bool = False

    def of(self, row: Row) -> object:
        """Return the value in a row."""
        return row[self.name] if self.value is None else self.value(row)


@dataclass(frozen=True)
class Table:
    """One table, or columns that are added to one.

    Attributes:
        columns: in their order.
        records: the kinds of records that it reads (`aird.reporting.grid.KINDS`).
        rows: makes its rows of these.
        says: what it shows, as Markdown.
        place: tables with lower numbers come first, in the report and on the page that describes all columns.
        file: the table that the columns are added to; None of a table of its own.
        where: a setting of the grid that names patches; where it names none there is no such table.
        whole: it judges a whole grid, so it is not made of some of a grid's records.
        rule: the workflow's rule that makes it.
    """

    columns: Sequence[Column]
    records: tuple[str, ...] = ()
    rows: Callable[[Records], Iterable[Row]] | None = None
    says: str | None = ""
    place: int = 100
    file: str | None = None
    where: str | None = None
    whole: bool = False
    rule: str = "make_tables"


def at(*path: str) -> Callable[[Row], object]:
    """Return what takes a value out of nested records; None where one of them is None."""

    def value(row: Row) -> object:
        found: Any = row
        for name in path:
            found = None if found is None else found[name]
        return found

    return value


def values(names: str, *path: str, says: str = "", dtype: str | None = None, prefix: str = "") -> list[Column]:
    """Return columns with one text, whose values stand under their names in the record at a path of a row."""
    return [Column(f"{prefix}{name}", at(*path, name), says=says, dtype=dtype) for name in names.split()]


def interval(name: str, *path: str, value: str = "value", says: str = "") -> list[Column]:
    """Return the columns of a value and its interval, from a record with `low`, `high` and the value's own key."""
    keys = INTERVAL | {"": value}
    return [Column(f"{name}{end}", at(*path, key), says=says) for end, key in keys.items()]


def each(kind: str, items: Callable[[Any], Iterable[Row]]) -> Callable[[Records], Iterator[Row]]:
    """Return what makes a row of each item of every record of a kind; its names stand in front."""

    def rows(records: Records) -> Iterator[Row]:
        for key, record in records.present[kind].items():
            for item in items(record):
                yield {**named(key), **item}

    return rows


def named(key: Sequence[str]) -> dict[str, str]:
    """Return the parts of a record's key by their names."""
    return dict(zip(KEYS, key, strict=False))


PAIR = values("model compression")
CELL = values("model compression patch")
SUITE_AND_CELL = values("suite model compression patch")

"""The tidy tables: one plug-in each (aird/plugin.py), one kind of result per table, one observation per row.

To add one, write a file beside this one that ends with `TABLE = Table(...)` (aird/reporting/table.py). To add a column,
write it into its table's file; a plug-in from elsewhere names the table: `Table(file="summary", columns=[...])`.
The rules, the report and the page that describes all columns take everything else from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aird.plugin import TABLES, PluginError
from aird.reporting.grid import KINDS
from aird.reporting.records import Records
from aird.reporting.table import Table

if TYPE_CHECKING:
    import pandas


def all_tables() -> dict[str, Table]:
    """Return every table by the name of its file, in their order, with the columns that other plug-ins add.

    Raises:
        PluginError: a plug-in adds columns to a table that is not there, or one that it has.
    """
    loaded: dict[str, Table] = {name: TABLES.load(name) for name in TABLES.names()}
    tables = {name: table for name, table in loaded.items() if table.file is None}
    for name, more in loaded.items():
        if more.file is None:
            continue
        if more.file not in tables:
            raise PluginError(f"{name} adds columns to the table {more.file}; there are: {', '.join(tables)}")
        table = tables[more.file]
        twice = {column.name for column in table.columns} & {column.name for column in more.columns}
        if twice:
            raise PluginError(f"{name} adds the column {min(twice)} to the table {more.file}, which has one")
        tables[more.file] = replace(table, columns=[*table.columns, *more.columns])
    return dict(sorted(tables.items(), key=lambda named: named[1].place))


def tables_of(grid: Mapping[str, Any]) -> dict[str, Table]:
    """Return the tables that every run of a grid makes.

    Args:
        grid: as in `aird.reporting.grid.keys_of`, and the patches that each `Table.where` names.
    """
    return {
        name: table
        for name, table in all_tables().items()
        if table.rule == "make_tables" and (table.where is None or grid[table.where])
    }


def plugin_files(names: Iterable[str]) -> list[Path]:
    """Return the files of the plug-ins that make these tables, those that add columns included."""
    wanted = set(names)
    return [TABLES.file(name) for name in TABLES.names() if {name, TABLES.load(name).file} & wanted]


def kinds_of(tables: Iterable[Table]) -> list[str]:
    """Return the kinds of records that tables read, in the order in which a run makes them."""
    read = {kind for table in tables for kind in table.records}
    return [kind for kind in KINDS if kind in read]


def make_table(table: Table, records: Records) -> pandas.DataFrame:
    """Return a table of what is there of its records: cells of absent records stay empty."""
    import pandas

    assert table.rows is not None, "a plug-in without rows only adds columns to another table"
    rows = [[column.of(row) for column in table.columns] for row in table.rows(records)]
    frame = pandas.DataFrame(rows, columns=[column.name for column in table.columns])
    unused = [
        column.name
        for index, column in enumerate(table.columns)
        if column.optional and all(row[index] is None for row in rows)
    ]
    types = {column.name: column.dtype for column in table.columns if column.dtype is not None}
    return frame.astype(types).drop(columns=unused)

"""Write the description of all tables and their columns from the tables themselves, so that it cannot be wrong.

`python -m aird.reporting.reference` rewrites the end of docs/artifacts.md.
"""

from __future__ import annotations

import textwrap
from itertools import groupby
from pathlib import Path

from aird.reporting.table import Table
from aird.reporting.tables import all_tables

PAGE = Path("docs/artifacts.md")
MARK = "<!-- What follows is generated: python -m aird.reporting.reference -->\n"


def reference() -> str:
    """Return the description of every table as Markdown."""
    return "\n".join(_section(name, table) for name, table in all_tables().items())


def _section(name: str, table: Table) -> str:
    introduction = textwrap.fill(
        " ".join((table.says or "").split()), 138, break_long_words=False, break_on_hyphens=False
    )
    rows = [
        f"- {', '.join(_names([column.name for column in columns]))}: {says}"
        for says, columns in groupby(table.columns, key=lambda column: column.says)
        if says  # the others are names
    ]
    return "\n".join([f"## {name}.csv\n\n{introduction}\n", *rows, ""])


def _names(names: list[str]) -> list[str]:
    """Return the names as code; ± stands for the two columns of a value's interval."""
    stems = {name: name.removesuffix("_mean") for name in names}
    ends = {f"{stem}{end}" for stem in stems.values() for end in ("_low", "_high")}
    return [f"`{name}`±" if f"{stem}_low" in names else f"`{name}`" for name, stem in stems.items() if name not in ends]


def generated_page(page: str) -> str:
    """Return the page with the description of today's tables behind the mark."""
    return f"{page[: page.index(MARK) + len(MARK)]}\n{reference()}"


if __name__ == "__main__":
    PAGE.write_text(generated_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""Make CSV tables from the records of the nodes: those whose files are named."""

from pathlib import Path
from typing import Any

from aird.reporting.records import describe_absent, read_records
from aird.reporting.tables import all_tables, kinds_of, make_table
from aird.support.files import atomic_file

from arguments import run


def main(results: Path, settings: dict[str, Any], output: list[Path]) -> None:
    """Run the script."""
    known = all_tables()
    tables = {path: known[path.stem] for path in output}
    records = read_records(results, settings, kinds_of(tables.values()))
    if absent := describe_absent(records.absent, settings):
        raise FileNotFoundError(absent)
    for path, table in tables.items():
        with atomic_file(path) as temporary:
            make_table(table, records).to_csv(temporary, index=False)


if __name__ == "__main__":
    run(main)

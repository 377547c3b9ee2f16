"""Make the tables of what is there, at any time, and print two of them as Markdown: `make tables`.

A run may go on beside it. results/tables/ then gets every table but claims.csv, which judges a whole
grid. As one table is missing, Snakemake makes all of them again when the rest is there.
"""

import json
from pathlib import Path

from aird.plugin import use_files
from aird.reporting.markdown import directions_markdown, summary_markdown
from aird.reporting.records import absent_keys, describe_absent, read_records
from aird.reporting.tables import kinds_of, make_table, tables_of
from aird.support.files import atomic_file

from arguments import call


def main(results: Path, grid: Path) -> None:
    """Run the script."""
    if not grid.is_file():
        print("No run has begun in this folder: snakemake --cores all")
        return
    begun = json.loads(grid.read_text(encoding="utf-8"))
    use_files(begun["plugins"])
    tables = tables_of(begun)
    verdicts = [name for name, table in tables.items() if table.whole]
    kinds = kinds_of(tables.values())
    while True:
        records = read_records(results, begun, kinds)
        made = {name: make_table(table, records) for name, table in tables.items() if not table.whole}
        # The rule that makes all tables starts with the last record, and takes seconds until it writes.
        if absent_keys(results, begun, kinds) == records.absent:
            break
    folder = results / "tables"
    changed = write({folder / f"{name}.csv": frame.to_csv(index=False) for name, frame in made.items()})
    if changed:
        # The verdicts were on other numbers.
        for name in verdicts:
            (folder / f"{name}.csv").unlink(missing_ok=True)
    if len(made["summary"]):
        print(summary_markdown(made["summary"]), end="\n\n")
    if len(made["directions"]):
        print(directions_markdown(made["directions"]), end="\n\n")
    absent = describe_absent(records.absent, begun)
    if absent:
        print(absent)
    if not all((folder / f"{name}.csv").is_file() for name in verdicts):
        missing = " and ".join(f"{name}.csv" for name in verdicts)
        print(f"{folder}/ has what is there. The verdicts ({missing}) are made by a run, when nothing is missing.")


def write(texts: dict[Path, str]) -> bool:
    """Write those files whose text is another one now; return whether there was one."""
    changed = {path: text for path, text in texts.items() if not path.is_file() or path.read_text("utf-8") != text}
    for path, text in changed.items():
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return bool(changed)


if __name__ == "__main__":
    call(main)

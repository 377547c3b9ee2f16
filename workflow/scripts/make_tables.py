"""Make CSV tables from the records of the nodes: those whose files are named."""

from aird.reporting.records import describe_absent, read_records
from aird.reporting.tables import all_tables, kinds_of, make_table
from aird.support.files import atomic_file

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="results", texts="settings", many="output")
    begin_job(arguments)
    known = all_tables()
    tables = {path: known[path.stem] for path in arguments.output}
    records = read_records(arguments.results, arguments.settings, kinds_of(tables.values()))
    if absent := describe_absent(records.absent, arguments.settings):
        raise FileNotFoundError(absent)
    for path, table in tables.items():
        with atomic_file(path) as temporary:
            make_table(table, records).to_csv(temporary, index=False)


if __name__ == "__main__":
    main()

"""Say what each merged patch leaves of what compression bought: sparsity, bits per weight and bytes."""

from aird.reporting.tables import merged_table
from aird.support.files import atomic_file, read_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="output", texts="settings", many="bases statistics merged")
    begin_job(arguments)
    cells = [tuple(cell) for cell in arguments.settings]
    files = zip(arguments.bases, arguments.statistics, arguments.merged, strict=True)
    records = {cell: tuple(map(read_json, paths)) for cell, paths in zip(cells, files, strict=True)}
    with atomic_file(arguments.output) as temporary:
        merged_table(records).to_csv(temporary, index=False)


if __name__ == "__main__":
    main()

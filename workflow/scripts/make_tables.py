"""Collect the records of all nodes into tidy CSV tables."""

from aird.reporting.claims import Evidence, claims_table
from aird.reporting.records import describe_absent, read_records, record_tables
from aird.support.files import atomic_file

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="results", texts="settings", many="output")
    begin_job(arguments)
    grid = arguments.settings
    records = read_records(arguments.results, grid)
    absent = describe_absent(records.absent, grid)
    if absent:
        raise FileNotFoundError(absent)
    evidence = Evidence(
        records.present["directions"],
        records.present["verifications"],
        records.present["comparisons"],
        records.scores,
        frozenset(grid["pruned"]),
        frozenset(grid["random"]),
        grid["controls"],
        grid["seed"],
        records.present["restorations"],
        records.present["examinations"],
        frozenset(grid.get("given", ())),
    )
    made = {**record_tables(records), "claims": claims_table(evidence)}
    for path in arguments.output:
        with atomic_file(path) as temporary:
            made[path.stem].to_csv(temporary, index=False)


if __name__ == "__main__":
    main()

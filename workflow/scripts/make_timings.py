"""Collect the benchmark files of all jobs into one table."""

from aird.reporting.timings import timings_table
from aird.support.files import atomic_file

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="benchmarks output")
    begin_job(arguments)
    with atomic_file(arguments.output) as temporary:
        timings_table(arguments.benchmarks).to_csv(temporary, index=False)


if __name__ == "__main__":
    main()

"""Measure which type of arithmetic this processor is fast in, and record what all jobs and servers follow."""

from aird.support.files import write_json
from aird.support.processor import measure_arithmetic

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="output", texts="settings")
    begin_job(arguments)
    write_json(arguments.output, measure_arithmetic(arguments.settings))


if __name__ == "__main__":
    main()

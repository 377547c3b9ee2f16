"""Measure which type of arithmetic this processor is fast in, and record what all jobs and servers follow."""

from pathlib import Path

from aird.support.files import write_json
from aird.support.processor import Choice, measure_arithmetic

from arguments import run


def main(settings: Choice, output: Path) -> None:
    """Run the script."""
    write_json(output, measure_arithmetic(settings))


if __name__ == "__main__":
    run(main)

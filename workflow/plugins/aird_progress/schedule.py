"""When each job of a finished run began and ended, from Snakemake's own log.

    PYTHONPATH=workflow/plugins python -m aird_progress.schedule .snakemake/log/NAME.log > tests/data/runs/NAME.tsv

gives a run that tests/test_progress.py replays (a line of `RECORDED` there names it); `--weights` gives the
lines of `weights.WEIGHTS`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

TIME = re.compile(r"\[(\w{3} \w{3} +\d+ [\d:]+ \d{4})\]")
BEGUN = re.compile(r"(?:local)?(?:Job (\d+): |    jobid: (\d+))")
ENDED = re.compile(r"Finished jobid: (\d+) \(Rule: (\w+)\)")


def schedule(log: Path) -> Iterator[tuple[str, float, float]]:
    """Yield rule, begin and end of every finished job of a run, in the order in which they ended.

    Args:
        log: Snakemake's own of that run. Times are in seconds since the first job began.
    """
    begun: dict[str, float] = {}
    now, first = 0.0, None
    for line in log.read_text(encoding="utf-8").splitlines():
        if match := TIME.match(line):
            now = datetime.strptime(match[1], "%a %b %d %H:%M:%S %Y").timestamp()
        elif match := BEGUN.match(line):
            first = now if first is None else first
            begun.setdefault(match[1] or match[2], now)
        elif (match := ENDED.match(line)) and match[1] in begun and first is not None:
            yield match[2], begun[match[1]] - first, now - first


def main() -> None:
    """Print the schedule of a run, or the weights that it gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="Snakemake's own log of a finished run")
    parser.add_argument("--weights", action="store_true", help="print the mean seconds of each rule, for weights.py")
    arguments = parser.parse_args()
    jobs = list(schedule(arguments.log))
    if arguments.weights:
        for rule in dict.fromkeys(rule for rule, _, _ in jobs):
            seconds = [ended - began for name, began, ended in jobs if name == rule]
            print(f'    "{rule}": {sum(seconds) / len(seconds):.1f},')
        return
    print("rule\tbegan\tended")
    for rule, began, ended in jobs:
        print(f"{rule}\t{began:.0f}\t{ended:.0f}")


if __name__ == "__main__":
    main()

"""Run all benchmarks and write benchmarks/results.md and results.json: `make bench`.

python -m benchmarks                     all, each in a fresh process
python -m benchmarks scoring capture     only these; the rows of the others stay
python -m benchmarks --one scoring embedded     one, in this process; prints JSON
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import Result

FOLDER = Path(__file__).resolve().parent
# Benchmark -> the sizes it runs on; "" where it makes its own input.
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "scoring": ("embedded", "wide"),
    "capture": ("embedded", "wide"),
    "packs": ("embedded",),
    "replies": ("embedded",),
    "adapter": ("",),
    "serving": ("embedded",),
    "demo": ("",),
    "planning": ("",),
    "growth": ("",),  # draws planning too
}

# What changes a measurement stands in its row.
VARIABLES = ("OMP_NUM_THREADS", "AIRD_BENCH_LAYERS", "AIRD_BENCH_SITES", "AIRD_BENCH_COMPARED")


def one(name: str, size: str) -> list[Result]:
    """Run one benchmark in this process."""
    module = importlib.import_module(f"benchmarks.{name}")
    if not size:
        return list(module.run())
    from benchmarks.workload import WORKLOADS

    return list(module.run(WORKLOADS[size]()))


def command(name: str, size: str) -> list[str]:
    """Return the command that makes one benchmark's rows."""
    return ["-m", "benchmarks", "--one", name, *([size] if size else [])]


def in_fresh_process(name: str, size: str) -> list[dict[str, Any]]:
    """Run one benchmark in a process of its own; return its rows."""
    process = subprocess.run(
        [sys.executable, *command(name, size)], cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True, check=True
    )
    rows: list[dict[str, Any]] = json.loads(process.stdout.splitlines()[-1])
    variables = [f"{key}={os.environ[key]}" for key in VARIABLES if key in os.environ]
    return [
        {"command": " ".join([*variables, "python", *command(name, size)]), "benchmark": name, **row} for row in rows
    ]


def write(rows: list[dict[str, Any]]) -> None:
    """Write all rows as JSON and as a table."""
    (FOLDER / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    def number(value: float | None, pattern: str) -> str:
        return "" if value is None else pattern.format(value)

    lines = [
        "# Results of `make bench`",
        "",
        f"{processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}.",
        "",
        "*ratio*: times faster than what it is compared with in the same run, or what the row says. *of floor*: the",
        "time that its operations over this machine's matrix rate, or its bytes over its bandwidth, would take, over",
        "the time that it took. What is compared stands at the head of each `benchmarks/*.py`.",
        "",
        "| what | ratio | peak, MiB | of floor | measured | command |",
        "| --- | ---: | ---: | ---: | --- | --- |",
        *(
            f"| {row['name']} | {number(row['ratio'], '{:.3g}')} | {number(row['peak_memory_mb'], '{:.0f}')} "
            f"| {number(row['floor_fraction'], '{:.0%}')} | {row['measured']} "
            f"| `{row['command']}` |"
            for row in rows
        ),
        "",
    ]
    (FOLDER / "results.md").write_text("\n".join(lines), encoding="utf-8")


def processor() -> str:
    """Return the processor's name, as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Run what the command line names."""
    if sys.argv[1:2] == ["--one"]:
        name, size = [*sys.argv[2:], ""][:2]
        print(json.dumps([dataclasses.asdict(result) for result in one(name, size)]))
        return
    wanted = sys.argv[1:] or list(BENCHMARKS)
    unknown = sorted(set(wanted) - set(BENCHMARKS))
    if unknown:
        sys.exit(f"no benchmark {unknown}; there are: {', '.join(BENCHMARKS)}")
    before = json.loads((FOLDER / "results.json").read_text()) if (FOLDER / "results.json").exists() else []
    found = {name: [row for row in before if row["benchmark"] == name] for name in BENCHMARKS}
    for name in wanted:
        print(name, flush=True)
        found[name] = [row for size in BENCHMARKS[name] for row in in_fresh_process(name, size)]
        write([row for rows in found.values() for row in rows])


if __name__ == "__main__":
    main()

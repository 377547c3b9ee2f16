"""How long Snakemake takes to plan grids of growing size, and how much memory.

Each grid is planned in a fresh process (`snakemake --dry-run`) in a folder without
results, so that every job of the grid is in the plan. Writes benchmarks/planning.md.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import Result

ROOT = Path(__file__).resolve().parent.parent
SIZES = ((1, 12, 4, 3), (5, 12, 4, 3), (10, 12, 4, 3), (25, 12, 4, 3), (50, 12, 4, 3))
# Models come from the hub with a pinned commit: planning asks no hub.
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def grid(models: int, compressions: int, patches: int, suites: int) -> dict[str, Any]:
    """Return the default configuration with that many models, compressions, patches and suites."""
    configuration = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    (suite,) = configuration["suites"].values()
    return configuration | {
        "models": {f"model-{i}": {"source": {"hub": f"someone/model-{i}", "revision": COMMIT}} for i in range(models)},
        "compressions": {
            f"magnitude-{i}": {"recipe": "magnitude", "sparsity": (i + 1) / (compressions + 1)}
            for i in range(compressions)
        },
        "patches": {f"aird-{i}": {"method": "scale", "alpha": (i + 1) / patches} for i in range(patches)},
        "suites": {f"suite-{i}": suite for i in range(suites)},
    }


def plan(folder: Path, configuration: dict[str, Any]) -> tuple[int, float, float]:
    """Plan a grid; return the number of jobs, seconds and peak memory in MiB."""
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--dry-run", "--configfile", str(path)]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    start = time.monotonic()
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        log.seek(0)
        text = log.read()
    total = re.search(r"^total\s+(\d+)", text, re.MULTILINE)
    if status != 0 or total is None:
        raise RuntimeError(f"planning failed:\n{text[-2000:]}")
    return int(total[1]), seconds, usage.ru_maxrss / 1024


def run() -> list[Result]:
    """Plan all sizes, write the table, and return what time grows with."""
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "resources").symlink_to(ROOT / "resources")
            rows.append((size, *plan(Path(folder), grid(*size))))
    (_, few, short, _), (_, many, long, peak) = rows[-2:]
    exponent = math.log(long / short) / math.log(many / few)
    lines = [
        "# Planning",
        "",
        "`snakemake --dry-run` without results on two cores: `python -m benchmarks planning`.",
        "",
        "| models x compressions x patches x suites | jobs | seconds | peak MiB | milliseconds per job |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {' x '.join(map(str, size))} | {jobs} | {seconds:.1f} | {memory:.0f} | {1000 * seconds / jobs:.2f} |"
            for size, jobs, seconds, memory in rows
        ),
        "",
        f"Between the last two sizes time grows as jobs^{exponent:.2f}.",
        "",
    ]
    (ROOT / "benchmarks" / "planning.md").write_text("\n".join(lines), encoding="utf-8")
    measured = f"{many} jobs in {long:.1f} s; table in benchmarks/planning.md"
    return [Result("growth of planning with jobs: exponent of time", exponent, peak, None, measured)]

"""What makes planning quick (docs/tricks.md, Snakemake): each trick still does what it is kept for; and what a plan says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from project import ROOT

from benchmarks.planning import grid

pytestmark = pytest.mark.workflow

# Counts, by Snakemake's own function, how often a job's lines are made, and looks at the garbage collector when all
# else is over (functions that are registered first run last).
PROGRAM = """
import atexit, gc, sys
import snakemake.jobs
made = []
log_info = snakemake.jobs.Job.log_info
def counted(job, *arguments, **options):
    made.append(job)
    return log_info(job, *arguments, **options)
snakemake.jobs.Job.log_info = counted
atexit.register(lambda: print("made", len(made), "collects", gc.isenabled(), "frozen", gc.get_freeze_count() > 0))
from snakemake.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder without results and the configuration of a small grid."""
    made = tmp_path_factory.mktemp("plan")
    (made / "resources").symlink_to(ROOT / "resources")
    (made / "grid.yaml").write_text(yaml.safe_dump(grid(1, 1, 1, 1), sort_keys=False), encoding="utf-8")
    return made


def plan(folder: Path, *arguments: str) -> str:
    """Return all that a plan says."""
    command = [sys.executable, "-c", PROGRAM, "--dry-run", "--cores", "2", "--configfile", "grid.yaml"]
    command += ["--snakefile", str(ROOT / "Snakefile"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow" / "plugins")}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return result.stdout + result.stderr


def jobs(text: str) -> int:
    """Return the number of jobs in the table of a plan."""
    (total,) = set(re.findall(r"^total\s+(\d+)", text, re.MULTILINE))
    return int(total)


def test_a_plan_is_a_table_and_makes_no_lines_of_jobs(folder: Path) -> None:
    text = plan(folder)
    assert jobs(text) > 20
    assert "rule compress_model:" not in text and "Compressing model-0" not in text
    assert "made 0 collects False frozen True" in text


@pytest.mark.thorough
@pytest.mark.parametrize("arguments", [("--printshellcmds",), ("--logger", "why")])
def test_who_asks_for_jobs_gets_them(folder: Path, arguments: tuple[str, ...]) -> None:
    """Else Snakemake would no longer make the lines by the function that a plan replaces."""
    text = plan(folder, *arguments)
    made = re.search(r"made (\d+) ", text)
    assert made is not None and int(made[1]) > 20
    assert "compress_model" in text


@pytest.mark.thorough
def test_the_report_names_the_command_with_all_of_its_configuration(folder: Path) -> None:
    text = plan(
        folder, "--config", "seed=7", "compute_dtype=checkpoint", "--printshellcmds", "--", "results/report.html"
    )
    assert "--command 'snakemake --cores all --configfile grid.yaml --config seed=7 compute_dtype=checkpoint'" in text
    assert "--command 'snakemake --cores all --configfile grid.yaml'" in plan(folder, "-p", "results/report.html")

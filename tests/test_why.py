"""Reasons for jobs, in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from project import ROOT
from snakemake_logger_plugin_why import in_words

MADE_BY = {"results/a.json": "capture_activations", "results/b.json": "capture_activations", "results/c.json": "tune"}


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Updated input files: inputs/a.txt", ["inputs/a.txt changed"]),
        (
            "Updated input files: results/code/make_patch.0123456789ab.sha256, inputs/a.txt",
            ["its code changed (its script, a module that it imports, or the lock)", "inputs/a.txt changed"],
        ),
        (
            "Updated input files: results/code/make_patch+aird.patching.formula.0123456789ab.sha256",
            ["its code changed (its script, a module that it imports, or the lock)"],
        ),
        (
            "Input files updated by another job: results/c.json, results/a.json, results/b.json",
            ["the results of capture_activations, tune are made anew"],
        ),
        ("Input files updated by another job: other.json", ["the results of other.json are made anew"]),
        (
            "Missing output files: 1, 2, 3, 4, 5; Params have changed since last execution",
            ["1, 2, 3 and 2 more does not exist yet", "a setting that it uses changed"],
        ),
        ("Incomplete output files: x", ["x was left unfinished by an interrupted run"]),
        ("Code has changed since last execution", ["its command in rules/ changed"]),
        ("Forced execution", ["Forced execution"]),
        ("", ["it is what was asked for, and one of its inputs is made anew"]),
    ],
)
def test_in_words(reason: str, words: list[str]) -> None:
    assert in_words(reason, MADE_BY) == words


def test_set_of_inputs() -> None:
    (words,) = in_words("Set of input files has changed since last execution", {})
    assert words.startswith("it runs other code, or reads other files")


def plan(folder: Path, snakefile: str) -> subprocess.CompletedProcess[str]:
    """Return what `make why` would say of a workflow."""
    (folder / "Snakefile").write_text(snakefile, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow" / "plugins")}
    call = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--logger", "why"]
    return subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_an_error_is_no_result_that_is_up_to_date(tmp_path: Path) -> None:
    result = plan(tmp_path, 'raise WorkflowError("seed: is no number")\n')
    assert result.returncode != 0 and "seed: is no number" in result.stderr
    assert "up to date" not in result.stdout


def test_where_nothing_would_run_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "made.txt").write_text("", encoding="utf-8")
    result = plan(tmp_path, 'rule all:\n    input: "made.txt"\n')
    assert result.returncode == 0 and "every result is up to date" in result.stdout

"""The workflow as a Snakemake module of somebody's own workflow: planned whole, and run in part."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from grid import tiny_configuration
from project import ROOT, run_snakemake, write_configuration

from aird.support.files import check_folder

pytestmark = [pytest.mark.workflow, pytest.mark.thorough]

SNAKEFILE = """
configfile: "study.yaml"


module aird:
    snakefile:
        "{root}/Snakefile"
    config:
        config


use rule * from aird


rule first_line:
    input:
        "results/models/tiny/wanda-50/manifest.json",
    output:
        "first_line.txt",
    shell:
        "head -1 {{input}} > {{output}}"


rule sentence:
    input:
        "results/tables/summary.csv",
    output:
        "sentence.txt",
    shell:
        "wc -l {{input}} > {{output}}"
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workflow of its own, in another folder, that takes all rules from this one."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "Snakefile").write_text(SNAKEFILE.format(root=ROOT), encoding="utf-8")
    write_configuration(folder, tiny_configuration(folder, ["tiny"], {"executable": sys.executable}), "study.yaml")
    return folder


def run(study: Path, *arguments: str) -> str:
    profile = str(ROOT / "profiles/default")
    result = run_snakemake(study, ["--cores", "2", "--workflow-profile", profile, *arguments])
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return result.stdout + result.stderr


def test_every_stage_is_planned_under_a_rule_of_the_study(study: Path) -> None:
    text = run(study, "--dry-run", "sentence.txt")
    counts = dict(line.split() for line in text.splitlines() if len(line.split()) == 2 and line.split()[1].isdigit())
    wanted = {"import_model": 1, "compress_model": 1, "capture_activations": 2, "evaluate_suite": 3, "sentence": 1}
    assert wanted.items() <= {name: int(count) for name, count in counts.items()}.items()
    assert not (study / "results/tables").exists()


def test_a_part_runs_for_real_in_the_folder_of_the_study(study: Path) -> None:
    run(study, "first_line.txt")
    assert (study / "first_line.txt").read_text() == "{\n"
    model = study / "results/models/tiny/wanda-50"
    manifest = json.loads((model / "manifest.json").read_text())
    check_folder(model / "checkpoint", manifest["files"])
    assert manifest["total"]["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert "Nothing to be done" in run(study, "first_line.txt")

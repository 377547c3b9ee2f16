"""A grid of recipes and ready-made checkpoints: only the nodes exist that a model has a checkpoint for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grid import tiny_configuration
from project import copy_project, job_records, names, snakemake, write_configuration
from tiny_model import build_tiny_model

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_project(tmp_path_factory.mktemp("given") / "project")
    for seed, name in enumerate(("tiny", "second", "packed")):
        build_tiny_model(folder / "inputs/models" / name, seed=seed)
    configuration: dict[str, Any] = tiny_configuration(folder, ["tiny", "second"], {"executable": "inputs/python"})
    (folder / "inputs/python").write_text("stands for vLLM's environment", encoding="utf-8")
    configuration["compressions"] = {
        "w4a16": configuration["compressions"]["w4a16"],
        "ready": {"recipe": "given", "sources": {"tiny": {"path": "inputs/models/packed"}}},
    }
    configuration["patches"] = {"aird": {"method": "scale"}, "only": {"method": "scale", "compressions": ["ready"]}}
    write_configuration(folder, configuration)
    return folder


def test_only_the_needed_nodes_exist(project: Path) -> None:
    records = job_records(project)
    jobs = names(records)
    assert {
        job for job in jobs if "/ready" in job and job.split()[0] not in ("evaluate_suite", "score_completions")
    } == {
        "import_given tiny/ready",
        *(
            f"{rule} tiny/ready"
            for rule in (
                "capture_activations",
                "score_candidates",
                "find_cosmic_direction",
                "select_direction",
                "verify_direction",
                "compare_directions",
            )
        ),
        "make_patch tiny/ready/aird",
        "make_patch tiny/ready/only",
    }
    assert {job for job in jobs if job.startswith("compress_model")} == {
        "compress_model tiny/w4a16",
        "compress_model second/w4a16",
    }
    assert not [job for job in jobs if "second/ready" in job or "second/w4a16/only" in job]
    # Its local files are watched.
    (job,) = [record for record in records if record["rule"] == "import_given"]
    assert "inputs/models/packed/model.safetensors" in job["input"]
    assert "results/models/tiny/original/manifest.json" in job["input"]


def test_asking_for_one_that_is_not_there(project: Path) -> None:
    result = snakemake(project, "--dry-run", "results/models/second/ready/manifest.json", check=False)
    text = result.stdout + result.stderr
    assert result.returncode != 0 and "add compressions.ready.sources.second" in " ".join(text.split())

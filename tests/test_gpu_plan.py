"""What jobs ask for on a machine with GPUs, by dry runs with a pretended nvidia-smi; and the plan of a cache recipe."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from grid import tiny_configuration
from project import copy_project, planned, snakemake, write_configuration
from tiny_model import build_tiny_model

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_project(tmp_path_factory.mktemp("gpus") / "project")
    build_tiny_model(folder / "inputs/models/tiny")
    (folder / "inputs/python").write_text("stands for vLLM's environment", encoding="utf-8")
    return folder


@pytest.fixture
def configuration(project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a grid on a machine of four GPUs: a model for two of them, and one that only its parameters tell of."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tool = project / "bin/nvidia-smi"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text('#!/bin/sh\nfor n in 0 1 2 3; do echo "GPU $n: Pretended (UUID: GPU-$n)"; done\n', encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    made = tiny_configuration(project, ["tiny"], {"executable": "inputs/python"})
    made["models"]["tiny"]["gpus"] = 2
    made["models"]["large"] = {
        "source": {"hub": "someone/large", "revision": "1" * 40},
        "parameters": 70.0,
        "compressions": ["w4a16"],
    }
    made["compressions"] = {"w4a16": made["compressions"]["w4a16"], "cache": {"recipe": "kv_cache", "dtype": "fp8"}}
    made["patches"] = {"aird": {"method": "scale", "compressions": ["cache"]}}
    return made


def jobs(project: Path, *arguments: str) -> dict[str, dict[str, str]]:
    """Return, per job of a plan, its resources and the GPUs that its script is told."""
    run = snakemake(project, "--dry-run", "-p", *arguments)
    found = {}
    for block in re.split(r"\n(?=rule |Job \d+: )", run.stdout + run.stderr):
        wildcards = re.search(r"wildcards: (.*)", block)
        resources = re.search(r"resources: (.*)", block)
        name = re.search(r"^(?:local)?rule (\w+):", block, re.M)
        told = re.search(r"--gpus (\d+)", block)
        if name and resources:
            values = dict(part.split("=", 1) for part in resources[1].split(", ") if "=" in part)
            key = " ".join([name[1], *re.findall(r"=([^,]+)", wildcards[1] if wildcards else "")])
            found[key] = values | ({"told": told[1]} if told else {})
    return found


def test_each_job_gets_the_gpus_and_the_memory_of_its_model(project: Path, configuration: dict[str, Any]) -> None:
    write_configuration(project, configuration)
    plan = jobs(project, "--resources", "gpu=4")
    for name in ("capture_activations tiny original", "evaluate_suite tiny w4a16 plain quick", "refusal_tokens tiny"):
        assert (plan[name]["gpu"], plan[name]["told"]) == ("2", "2"), name
    # One block of a model is there at a time.
    assert (plan["compress_model tiny w4a16"]["gpu"], plan["compress_model tiny w4a16"]["told"]) == ("1", "1")
    assert plan["evaluate_suite large w4a16 plain quick"]["told"] == "1"
    assert plan["make_patch tiny cache aird"]["told"] == "0"
    assert "gpu" not in plan["import_model tiny"]
    memory = {name: int(values["mem_mb"]) for name, values in plan.items()}
    assert memory["import_model large"] == 4_000 + 140_000
    assert memory["capture_activations large original"] == 4_000 + 140_000
    assert memory["compress_model large w4a16"] == 8_000 + 210_000
    assert memory["evaluate_suite large w4a16 plain quick"] == 8_000 + 140_000
    assert memory["evaluate_suite tiny w4a16 plain quick"] == 8_001  # a megabyte of weights


def test_more_gpus_than_a_run_may_use_are_an_error(project: Path, configuration: dict[str, Any]) -> None:
    write_configuration(project, configuration)
    run = snakemake(project, "--dry-run", check=False)
    text = " ".join((run.stdout + run.stderr).split())
    assert run.returncode != 0
    assert "models.tiny.gpus is 2, but this run may use 1; start it with --resources gpu=2 or more" in text


def test_without_gpus_weights_count_as_float32(
    project: Path, configuration: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "bin/nvidia-smi").unlink()
    write_configuration(project, configuration)
    plan = jobs(project)
    assert plan["capture_activations large original"]["mem_mb"] == str(4_000 + 280_000)
    assert plan["import_model large"]["mem_mb"] == str(4_000 + 140_000)
    assert {values["told"] for values in plan.values() if "told" in values} == {"0"}
    write_configuration(project, configuration | {"compute_dtype": "checkpoint"})
    assert jobs(project)["capture_activations large original"]["mem_mb"] == str(4_000 + 140_000)


def test_sizes_are_part_of_no_key(project: Path, configuration: dict[str, Any]) -> None:
    """What the jobs are given is the same JSON as before there were such settings."""
    write_configuration(project, configuration)

    def settings() -> list[str]:
        run = snakemake(project, "--dry-run", "-p", "--resources", "gpu=4")
        return sorted(re.findall(r"--settings '([^']*)'", run.stdout + run.stderr))

    before = settings()
    assert not any(word in text for text in before for word in ("gpu_memory_utilization", "arguments", "gpus"))
    configuration["models"]["tiny"] |= {"gpus": 1, "parameters": 0.1}
    write_configuration(project, configuration)
    # The report shows the whole configuration.
    assert [text for text in settings() if text not in before and '"seed"' not in text] == []
    configuration["serving"] |= {"arguments": {"max-num-seqs": 8}, "gpu_memory_utilization": 0.5}
    write_configuration(project, configuration)
    assert any('"arguments":{"max-num-seqs":8}' in text for text in settings())


def test_a_cache_recipe_has_cells_and_no_direction(project: Path, configuration: dict[str, Any]) -> None:
    write_configuration(project, configuration)
    cells = {job for job in planned(project, "--resources", "gpu=4") if "/cache" in job}
    assert cells == {
        "compress_model tiny/cache",
        "make_patch tiny/cache/aird",
        *(
            f"{rule} tiny/cache/{patch}/quick"
            for rule in ("evaluate_suite", "score_completions")
            for patch in ("plain", "aird")
        ),
    }

"""What jobs ask for on a machine with GPUs, by dry runs with a pretended nvidia-smi; and the plan of a cache recipe."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grid import QUANTISATION, tiny_configuration
from project import copy_project, job_records, names, planned, printed_by_rules, snakemake, write_configuration

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_project(tmp_path_factory.mktemp("gpus") / "project")
    (folder / "inputs").mkdir()
    (folder / "inputs/python").write_text("stands for vLLM's environment", encoding="utf-8")
    return folder


@pytest.fixture
def configuration(project: Path, pretend_gpus: Callable[[int], None]) -> dict[str, Any]:
    """Return a grid on a machine of four GPUs: a model for two of them, and one that only its parameters tell of."""
    pretend_gpus(4)
    made = tiny_configuration(project, ["tiny"], {"executable": "inputs/python"})
    made["models"]["tiny"]["gpus"] = 2
    made["models"]["large"] = {
        "source": {"hub": "someone/large", "revision": "1" * 40},
        "parameters": 70.0,
        "compressions": ["w4a16"],
    }
    made["compressions"] = {
        "w4a16": QUANTISATION,
        "cache": {"recipe": "kv_cache", "dtype": "fp8"},
        "magnitude": {"recipe": "magnitude", "sparsity": 0.5},
        "nf4": {"recipe": "bitsandbytes", "variant": "nf4"},
    }
    made["patches"] = {"aird": {"method": "scale", "compressions": ["cache"]}}
    return made


def resources(project: Path, *arguments: str) -> dict[str, dict[str, int | None]]:
    """Return GPUs and memory of each job of a plan."""
    return {next(iter(names([record]))): record["resources"] for record in job_records(project, *arguments)}


def settings(project: Path) -> list[str]:
    """Return what the scripts are given; not the report's, which shows the whole configuration."""
    run = snakemake(project, "--dry-run", "-p", "--resources", "gpu=4")
    found = re.findall(r"settings '([^']*)'", run.stdout + run.stderr)
    return sorted(text for text in found if '"prompt_sets"' not in text)


@pytest.mark.thorough
def test_each_job_gets_the_gpus_and_the_memory_of_its_model(project: Path, configuration: dict[str, Any]) -> None:
    write_configuration(project, configuration)
    plan = resources(project, "--resources", "gpu=4")
    gpus = {name: values["gpu"] for name, values in plan.items()}
    running = ("capture_activations tiny/original", "evaluate_suite tiny/w4a16/plain/quick", "refusal_tokens tiny")
    assert {gpus[name] for name in running} == {2}
    # One block of a model is there at a time.
    assert gpus["compress_model tiny/w4a16"] == 1
    assert {gpus[f"compress_model tiny/{name}"] for name in ("cache", "magnitude", "nf4")} == {0}
    assert gpus["evaluate_suite large/w4a16/plain/quick"] == 1
    assert gpus["make_patch tiny/cache/aird"] == 0
    assert gpus["import_model tiny"] is None
    memory = {name: values["mem_mb"] for name, values in plan.items()}
    assert memory["import_model large"] == 4_000 + 280_000  # the proof computes in float32
    assert memory["capture_activations large/original"] == 4_000 + 140_000
    assert memory["compress_model large/w4a16"] == 8_000 + 210_000
    assert memory["evaluate_suite large/w4a16/plain/quick"] == 8_000 + 140_000
    assert memory["evaluate_suite tiny/w4a16/plain/quick"] == 8_001  # a megabyte of weights


@pytest.mark.thorough
def test_a_recipe_that_decodes_its_gguf_file_takes_as_much_as_the_import_of_one(
    project: Path, configuration: dict[str, Any]
) -> None:
    configuration["models"] = {"large": configuration["models"]["large"]}
    del configuration["models"]["large"]["compressions"]
    configuration["compressions"] |= {
        "q4": {"recipe": "gguf", "type": "Q4_0"},
        "cache-q8": {"recipe": "kv_cache", "dtype": "q8_0"},
    }
    write_configuration(project, configuration)
    plan = resources(project, "--resources", "gpu=4")
    expected = {"w4a16": 218_000, "cache": 218_000, "q4": 428_000, "cache-q8": 428_000}
    assert {name: plan[f"compress_model large/{name}"]["mem_mb"] for name in expected} == expected


@pytest.mark.thorough
def test_more_gpus_than_a_run_may_use_are_an_error(project: Path, configuration: dict[str, Any]) -> None:
    write_configuration(project, configuration)
    run = snakemake(project, "--dry-run", check=False)
    text = " ".join((run.stdout + run.stderr).split())
    assert run.returncode != 0
    assert "models.tiny.gpus is 2, but this run may use 1; start it with --resources gpu=2 or more" in text


@pytest.mark.thorough
def test_without_gpus_weights_count_as_float32(project: Path, configuration: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "bin/nvidia-smi").unlink()
    write_configuration(project, configuration)
    plan = resources(project)
    assert plan["capture_activations large/original"] == {"gpu": 0, "mem_mb": 4_000 + 280_000}
    assert plan["import_model large"]["mem_mb"] == 4_000 + 280_000
    write_configuration(project, configuration | {"compute_dtype": "checkpoint"})
    plan = resources(project)
    assert plan["capture_activations large/original"]["mem_mb"] == 4_000 + 140_000
    assert plan["import_model large"]["mem_mb"] == 4_000 + 280_000


@pytest.mark.thorough
def test_a_cluster_gets_vllm_for_gpus_from_a_machine_without(
    project: Path, configuration: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "bin/nvidia-smi").unlink()
    write_configuration(project, configuration | {"engines": {}})
    for options, lock in ((), "cpu"), (("--workflow-profile", "profiles/slurm"), "cuda"):
        readers = {
            record["rule"]
            for record in job_records(project, *options)
            if f"envs/vllm-{lock}.lock.txt" in record["input"]
        }
        assert readers == {"build_environment", "make_report"}


# What Snakemake knows of the rules once all are read, the profile's settings included.
RULES = """
groups = workflow.group_settings.overwrite_groups
for known in workflow.rules:
    gpu = "gpu" in known.resources and known.resources["gpu"].raw != 0
    print("RULE", known.name, gpu, "nodes" in known.resources, known.name in groups)
"""


def test_slurm_takes_the_gpus_of_a_job_from_one_node(project: Path, configuration: dict[str, Any]) -> None:
    write_configuration(project, configuration)
    lines = printed_by_rules(project, RULES, "--workflow-profile", "profiles/slurm")
    rules = [line.split()[1:] for line in lines if line.startswith("RULE ")]
    assert {name for name, gpu, _, _ in rules if gpu == "True"} == {
        name for name, _, nodes, _ in rules if nodes == "True"
    }
    assert not [name for name, _, nodes, grouped in rules if nodes == grouped == "True"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("mode", "asked", "threads"),
    [("default", None, "4 and 8"), ("remote", None, "8 and 8"), ("remote", "4", "4 and 4")],
)
def test_a_job_of_a_cluster_takes_all_cpus_that_it_asked_for(
    project: Path,
    configuration: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    asked: str | None,
    threads: str,
) -> None:
    """And no more: where processes are not bound, --cores is the whole machine."""
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if asked is not None:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", asked)
    write_configuration(project, configuration)
    options = ("--cores", "8", "--resources", "gpu=4", "--mode", mode)
    assert threads in printed_by_rules(project, 'print(THREADS, "and", ALL_THREADS)', *options)


@pytest.mark.thorough
def test_sizes_are_part_of_no_key(project: Path, configuration: dict[str, Any]) -> None:
    """Sizes of models decide no result; how vLLM is started may."""
    write_configuration(project, configuration)
    before = settings(project)
    configuration["models"]["tiny"] |= {"gpus": 1, "parameters": 0.1}
    write_configuration(project, configuration)
    assert settings(project) == before
    configuration["engines"]["vllm"] |= {"arguments": {"max-num-seqs": 8}, "gpu_memory_utilization": 0.5}
    write_configuration(project, configuration)
    assert any('"arguments":{"max-num-seqs":8}' in text for text in settings(project))


@pytest.mark.thorough
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

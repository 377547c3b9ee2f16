"""A grid of recipes and ready-made checkpoints: only the nodes exist that a model has a checkpoint for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ready_made
from grid import QUANTISATION, tiny_configuration
from project import copy_project, job_records, names, read_configuration, snakemake, write_configuration

from aird.models.loading import open_checkpoint

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_project(tmp_path_factory.mktemp("given") / "project")
    configuration = tiny_configuration(folder, ["tiny", "second"], {"executable": "inputs/python"})
    ready_made.awq(folder / "inputs/models/tiny", folder / "inputs/models/packed")
    (folder / "inputs/python").write_text("stands for vLLM's environment", encoding="utf-8")
    configuration["compressions"] = {
        "w4a16": QUANTISATION,
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
    (job,) = [record for record in records if record["rule"] == "import_given"]
    assert "results/models/tiny/original/manifest.json" in job["input"]


@pytest.mark.thorough
@pytest.mark.parametrize("trusted", [False, True])
def test_the_local_files_are_watched_that_an_import_reads(project: Path, trusted: bool) -> None:
    read = {"config.json", "chat_template.jinja", "model.safetensors", "tokenizer.json", "README.md"}
    others = {"own.py", "notes.md", ".notes.json", "params.json", "picture.png"}
    for folder in ("inputs/models/tiny", "inputs/models/packed"):
        for name in ("README.md", *others):
            (project / folder / name).write_text("{}", encoding="utf-8")
    configuration = read_configuration(project)
    configuration["models"]["tiny"]["trust_remote_code"] = trusted
    write_configuration(project, configuration, "trusted.yaml")
    records = job_records(project, configuration="trusted.yaml")
    for job, folder in (("import_model tiny", "tiny"), ("import_given tiny/ready", "packed")):
        (record,) = [each for each in records if names([each]) == {job}]
        watched = {Path(path).name for path in record["input"] if path.startswith(f"inputs/models/{folder}/")}
        assert watched >= read and watched & others == ({"own.py"} if trusted else set())


@pytest.mark.thorough
def test_it_is_imported_and_its_local_files_are_watched(project: Path) -> None:
    manifest = "results/models/tiny/ready/manifest.json"
    snakemake(project, manifest)
    record = json.loads((project / manifest).read_text(encoding="utf-8"))
    assert (record["format"], record["served_as"], record["patchable"]) == (["awq"], "repacked", True)
    assert record["settings"] == {"recipe": "given", "source": {"path": "inputs/models/packed"}}
    assert record["total"]["bits_per_weight"] == 4 + 20 / 32
    open_checkpoint(project / "results/models/tiny/ready/checkpoint", project / manifest)
    assert names(job_records(project, manifest)) == set()
    with open(project / "inputs/models/packed/config.json", "a", encoding="utf-8") as stream:
        stream.write("\n")
    assert names(job_records(project, manifest)) == {"import_given tiny/ready"}


@pytest.mark.thorough
def test_asking_for_one_that_is_not_there(project: Path) -> None:
    result = snakemake(project, "--dry-run", "results/models/second/ready/manifest.json", check=False)
    text = result.stdout + result.stderr
    assert result.returncode != 0 and "add compressions.ready.sources.second" in " ".join(text.split())

"""The workflow on a real single-node Slurm, through profiles/slurm."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from datetime import datetime
from itertools import combinations
from pathlib import Path

import pandas
import pytest
from grid import tiny_configuration
from project import copy_project, read_configuration, snakemake, write_configuration, write_vllm_lock
from slurm import NoSlurm, running_slurm

pytestmark = [pytest.mark.workflow, pytest.mark.thorough]

# What only a test needs: no accounting, and no long waits for jobs of seconds.
PROFILE = ["--workflow-profile", "profiles/slurm", "--slurm-no-account", "--slurm-status-command", "squeue"]
PROFILE += ["--slurm-init-seconds-before-status-checks", "5", "--latency-wait", "20", "--retries", "0"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    try:
        with running_slurm(tmp_path_factory.mktemp("slurm")):
            yield
    except NoSlurm as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def project(cluster: None, tmp_path_factory: pytest.TempPathFactory, vllm_python: Path) -> Path:
    """Return a project in which a grid of one compression has run on Slurm."""
    project = copy_project(tmp_path_factory.mktemp("cluster") / "project")
    write_vllm_lock(project, vllm_python)
    write_configuration(project, tiny_configuration(project, ["tiny"], {"lock": "inputs/vllm.lock.txt"}))
    snakemake(project, *PROFILE)
    return project


def slurm_jobs() -> list[dict[str, str]]:
    """Return what Slurm remembers of its jobs, allocated GPU ids included."""
    found = subprocess.run(["scontrol", "show", "job", "-d", "-o"], capture_output=True, text=True, check=True).stdout
    return [dict(re.findall(r"(\w+)=(\S*)", line)) | {"line": line} for line in found.splitlines() if "JobId=" in line]


def test_the_grid_runs_to_its_end(project: Path) -> None:
    summary = pandas.read_csv(project / "results/tables/summary.csv")
    assert set(zip(summary.compression, summary.patch, strict=True)) == {
        ("original", "plain"),
        ("wanda-50", "plain"),
        ("wanda-50", "aird"),
    }
    assert "Nothing to be done" in (lambda run: run.stdout + run.stderr)(snakemake(project))


def test_jobs_that_run_a_model_get_a_gpu_of_their_own(project: Path) -> None:
    using = []
    for log in (project / "results/logs").rglob("*.log"):
        found = re.search(
            r"^(\S+ \S+),\d+ aird.support.gpus: this job runs on GPU (\d+)", log.read_text(), re.MULTILINE
        )
        if found:
            start = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S")
            using.append((found[2], start, datetime.fromtimestamp(log.stat().st_mtime)))
    # Refusal tokens and compression; original and compressed: capture, score, COSMIC, verify; three cells.
    assert len(using) == 2 + 2 * 4 + 3
    assert {index for index, *_ in using} <= {"0", "1"}
    for (first, start, end), (second, other_start, other_end) in combinations(using, 2):
        assert first != second or end <= other_start or other_end <= start
    asked = [job for job in slurm_jobs() if "gpu" in job.get("TresPerJob", "")]
    assert len(asked) == len(using)


def test_small_jobs_share_a_submission(project: Path) -> None:
    comments = [job.get("Comment", "") for job in slurm_jobs()]
    assert len(comments) < 32 - 6
    assert not any("score_completions" in comment and "wildcards" in comment for comment in comments)


def test_a_model_of_two_gpus_gets_two(project: Path) -> None:
    values = read_configuration(project)
    values["models"]["tiny"]["gpus"] = 2
    write_configuration(project, values, "two.yaml")
    tokens = "results/directions/tiny/refusal_tokens.json"
    (project / tokens).unlink()
    snakemake(project, *PROFILE, tokens, configuration="two.yaml")
    log = (project / "results/logs/activations/tiny/refusal_tokens.log").read_text()
    assert "this job runs on GPU 0, 1, all" in log
    assert any("gpu:2" in job.get("TresPerJob", "") for job in slurm_jobs())


def test_the_log_of_a_failed_job_is_shown(project: Path) -> None:
    weights = project / "results/models/tiny/wanda-50/checkpoint/model.safetensors"
    content = weights.read_bytes()
    verification = project / "results/directions/tiny/wanda-50/verification.json"
    verification.unlink()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    failed = snakemake(project, *PROFILE, str(verification.relative_to(project)), check=False)
    weights.write_bytes(content)
    assert failed.returncode != 0
    assert "model.safetensors was altered" in failed.stdout + failed.stderr

"""Each job its own GPU, with processes that run at the same time and ids that nvidia-smi pretends to have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from aird.support.gpus import take_gpu, visible_gpus

ROOT = Path(__file__).resolve().parents[2]
JOB = """
import json, os, subprocess, sys, time
from pathlib import Path
from aird.support.gpus import take_gpu
taken = take_gpu(Path(sys.argv[1]))
start = time.time()
seen = subprocess.run(["printenv", "CUDA_VISIBLE_DEVICES"], capture_output=True, text=True).stdout.strip()
time.sleep(1.0)
print(json.dumps([taken, seen, start, time.time()]))
"""


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that puts an nvidia-smi with so many GPUs on PATH."""

    def make(count: int) -> None:
        script = tmp_path / "bin" / "nvidia-smi"
        script.parent.mkdir()
        lines = "\n".join(f"echo 'GPU {index}: Pretended (UUID: GPU-{index})'" for index in range(count))
        script.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return make


def run_jobs(tmp_path: Path, count: int) -> list[tuple[str, str, float, float]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", JOB, str(tmp_path / "locks")]
    jobs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return [json.loads(job.communicate(timeout=60)[0]) for job in jobs]


def test_never_two_jobs_on_one_gpu(tmp_path: Path, pretend: Callable[[int], None]) -> None:
    pretend(2)
    jobs = run_jobs(tmp_path, 5)
    assert {taken for taken, *_ in jobs} == {"0", "1"}
    assert all(taken == seen for taken, seen, *_ in jobs)
    for (first, _, start, end), (second, _, other_start, other_end) in combinations(jobs, 2):
        assert first != second or end <= other_start or other_end <= start


def test_only_visible_ids_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    assert {taken for taken, *_ in run_jobs(tmp_path, 2)} == {"5", "GPU-abc"}


@pytest.mark.parametrize("visible", ["3", "", "-1"])
def test_no_choice_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert take_gpu(tmp_path) is None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_ids_of_the_machine(pretend: Callable[[int], None]) -> None:
    pretend(3)
    assert visible_gpus() == ["0", "1", "2"]

"""Each job its own GPUs, with processes that run at the same time and ids that nvidia-smi pretends to have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from aird.support import gpus
from aird.support.gpus import free_memory, own_gpus, spreading_obstacle, take_gpus, visible_gpus

ROOT = Path(__file__).resolve().parents[2]
JOB = """
import json, os, subprocess, sys, time
from pathlib import Path
from aird.support.gpus import own_gpus, take_gpus
taken = take_gpus(int(sys.argv[2]), Path(sys.argv[1]))
start = time.time()
seen = subprocess.run(["printenv", "CUDA_VISIBLE_DEVICES"], capture_output=True, text=True).stdout.strip()
time.sleep(1.0)
print(json.dumps([taken, seen, own_gpus(), start, time.time()]))
"""


@pytest.fixture(autouse=True)
def nothing_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_own", [])
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", *gpus.SCHEDULED):  # what a test sets is taken back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


Job = tuple[list[str], str, int, float, float]


def run_jobs(tmp_path: Path, *wanted: int) -> list[Job]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", JOB, str(tmp_path / "locks")]
    jobs = [
        subprocess.Popen([*command, str(count)], env=environment, stdout=subprocess.PIPE, text=True) for count in wanted
    ]
    return [json.loads(job.communicate(timeout=60)[0]) for job in jobs]


def check_apart(jobs: list[Job]) -> None:
    assert all(",".join(taken) == seen for taken, seen, *_ in jobs)
    for (first, _, _, start, end), (second, _, _, other_start, other_end) in combinations(jobs, 2):
        assert not set(first) & set(second) or end <= other_start or other_end <= start


def test_never_two_jobs_on_one_gpu(tmp_path: Path, pretend_gpus: Callable[[int], None]) -> None:
    pretend_gpus(2)
    jobs = run_jobs(tmp_path, 1, 1, 1, 1, 1)
    assert {name for taken, *_ in jobs for name in taken} == {"0", "1"}
    check_apart(jobs)


def test_jobs_that_want_several_gpus_never_wait_for_each_other(
    tmp_path: Path, pretend_gpus: Callable[[int], None]
) -> None:
    """Of three GPUs three jobs want two each: gathered at the same time, each job would hold one and want another."""
    pretend_gpus(3)
    jobs = run_jobs(tmp_path, 2, 2, 1, 2)
    assert [(len(taken), own) for taken, _, own, *_ in jobs] == [(2, 2), (2, 2), (1, 1), (2, 2)]
    check_apart(jobs)


def test_only_visible_ids_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc,7")
    ((taken, *_),) = run_jobs(tmp_path, 2)
    assert len(taken) == 2 and set(taken) < {"5", "GPU-abc", "7"}


@pytest.mark.parametrize("scheduler", ["SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST"])
@pytest.mark.parametrize(("visible", "own"), [("3", 1), ("3,GPU-abc", 2)])
def test_what_a_scheduler_hands_out_is_not_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str, visible: str, own: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv(scheduler, "7")
    assert take_gpus(own, tmp_path) == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
    assert own_gpus() == own
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("visible", ["", "-1"])
def test_where_there_are_none_nothing_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert take_gpus(1, tmp_path) == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
    assert own_gpus() == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 2])
def test_jobs_that_want_all_gpus_wait_for_each_other(
    tmp_path: Path, pretend_gpus: Callable[[int], None], count: int
) -> None:
    """Two runs in two folders, each of which sees as many as its jobs want."""
    pretend_gpus(count)
    jobs = run_jobs(tmp_path, count, count)
    assert [taken for taken, *_ in jobs] == [["0", "1"][:count]] * 2
    check_apart(jobs)


def test_only_those_that_are_named_are_chosen_from(tmp_path: Path, pretend_gpus: Callable[[int], None]) -> None:
    pretend_gpus(3)
    assert take_gpus(1, tmp_path, among=["2"]) == ["2"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert own_gpus() == 1


def test_a_process_takes_what_it_has_once_more(tmp_path: Path, pretend_gpus: Callable[[int], None]) -> None:
    pretend_gpus(2)
    assert take_gpus(1, tmp_path) == take_gpus(1, tmp_path) == ["0"]


def test_a_choice_among_what_a_scheduler_hands_out(
    tmp_path: Path, pretend_gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(2)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert take_gpus(1, tmp_path, among=["1"]) == ["1"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_free_memory_of_the_machine(pretend_gpus: Callable[..., None]) -> None:
    pretend_gpus(2, 10, 300)
    assert free_memory() == {"0": 10 * 2**20, "GPU-0": 10 * 2**20, "1": 300 * 2**20, "GPU-1": 300 * 2**20}


def test_a_job_without_gpus_sees_none(pretend_gpus: Callable[[int], None]) -> None:
    pretend_gpus(2)
    take_gpus(0)
    assert visible_gpus() == []


def test_fewer_gpus_than_a_model_is_to_have_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with pytest.raises(RuntimeError, match=r"wants 4 GPUs and sees 2 \(4, 6\); lower `gpus` of the model"):
        take_gpus(4, tmp_path)


def test_ids_of_the_machine(pretend_gpus: Callable[[int], None]) -> None:
    pretend_gpus(3)
    assert visible_gpus() == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("heads", "shared", "count", "fits"),
    [(32, 8, 4, True), (32, 8, 16, True), (14, 2, 2, True), (14, 2, 4, False), (32, 6, 4, False), (9, 3, 1, True)],
)
def test_attention_heads_are_dealt_alike(heads: int, shared: int, count: int, fits: bool) -> None:
    config = {"num_attention_heads": heads, "num_key_value_heads": shared}
    assert (spreading_obstacle(config, count) is None) is fits
    assert (spreading_obstacle({"text_config": config}, count) is None) is fits

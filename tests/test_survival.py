"""SIGKILL at random moments of a real run: the same command then finishes, with the same results, and nothing stays."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from grid import tiny_configuration
from project import command, copy_project, planned, snakemake, write_configuration, write_vllm_lock

from aird.files import sha256_of

pytestmark = pytest.mark.workflow

KILLS = 30
# What is the same in every run of this machine, byte for byte.
DETERMINISTIC = (
    "prompts/*.jsonl",
    "models/tiny/*/checkpoint/*",
    "activations/tiny/*.safetensors",
    "directions/tiny/*.json",
    "directions/tiny/*/*",
    "comparisons/tiny/*.json",
    "patches/tiny/*/aird/adapter/*",
)


def processes_of(project: Path) -> list[psutil.Process]:
    """Return the processes that work in or for a project."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        known = process.info
        if known["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            places = [known["cwd"] or "", *(known["cmdline"] or [])]
            if any(str(project) in place for place in places):
                found.append(process)
    return found


def victims(project: Path, kind: str) -> list[psutil.Process]:
    """Return the processes of one kind: the run, its jobs, or vLLM's servers."""
    marks = {"run": "-m snakemake", "job": "workflow/scripts/", "server": "vllm.entrypoints"}
    chosen = []
    for process in processes_of(project):
        try:
            line = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if marks[kind] in line and (kind != "job" or "python" in process.name()):
            chosen.append(process)
    return chosen


def wait_for_none(project: Path, seconds: float) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    while (left := processes_of(project)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def test_thirty_kills(finished: Path, tmp_path: Path, vllm_python: Path) -> None:
    project = copy_project(tmp_path / "killed")
    shutil.copytree(finished / "inputs/models", project / "inputs/models")
    write_vllm_lock(project, vllm_python)
    configuration = tiny_configuration(project, ["tiny"], {"lock": "inputs/vllm.lock.txt"})
    configuration["compressions"] = {"magnitude-50": configuration["compressions"]["magnitude-50"]}
    configuration["patches"] = {"aird": configuration["patches"]["aird"]}
    write_configuration(project, configuration)
    chooser = random.Random(5)
    killed = {"run": 0, "job": 0, "server": 0}
    for attempt in range(10 * KILLS):
        if sum(killed.values()) >= KILLS:
            break
        run = subprocess.Popen(
            command(), cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        kind = ("run", "job", "server")[attempt % 3]
        # A server lives for a part of the run only: wait until there is one, then for some of its time.
        deadline = time.monotonic() + (40 if kind == "server" else 3)
        while not victims(project, kind) and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(chooser.uniform(0, 10 if kind == "run" else 4))
        for process in victims(project, kind)[:1]:
            process.send_signal(signal.SIGKILL)
            killed[kind] += 1
        if kind != "run":
            run.send_signal(signal.SIGKILL)
        run.wait()
        assert not wait_for_none(project, 25), f"after killing a {kind} something lives on"
        if not planned(project):
            shutil.rmtree(project / "results")  # it came to its end between two kills: begin again
    assert sum(killed.values()) >= KILLS and min(killed.values()) >= 3, killed
    snakemake(project)
    assert planned(project) == set()
    assert not list((project / "results").rglob(".*.partial"))
    assert not processes_of(project)
    compared = 0
    for pattern in DETERMINISTIC:
        for path in (project / "results").glob(pattern):
            if path.is_file():
                assert sha256_of(path) == sha256_of(finished / path.relative_to(project)), path
                compared += 1
    assert compared > 30


def test_a_second_run_in_the_folder_is_refused(finished: Path, tmp_path: Path) -> None:
    project = tmp_path / "twice"
    shutil.copytree(finished, project, symlinks=True)
    (project / "results/activations/tiny/original.safetensors").unlink()
    first = subprocess.Popen(command(), cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not victims(project, "job") and time.monotonic() < deadline:
        time.sleep(0.2)
    second = snakemake(project, check=False)
    first.kill()
    first.wait()
    assert second.returncode != 0
    assert f"another run (process {first.pid}) works in this folder" in second.stdout + second.stderr
    assert not wait_for_none(project, 25)

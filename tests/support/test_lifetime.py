"""Jobs end with their run, and one run holds a folder: with real processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from aird.support.lifetime import hold_run_lock

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

# A stand-in for Snakemake: it starts a shell that starts a job, as workflow/planning.py has it.
RUN = """
import subprocess, sys
job = "import subprocess, sys, time; from aird.support.lifetime import end_with_run; end_with_run(); "
job += "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
job += "open(sys.argv[1], 'w').write(str(child.pid)); time.sleep(600)"
command = f'export AIRD_RUN=$PPID; "{sys.executable}" -c "$JOB" "{sys.argv[1]}"; true'
import os
subprocess.run(["bash", "-c", command], env={**os.environ, "JOB": job})
"""


def started(tmp_path: Path) -> tuple[psutil.Process, psutil.Process, psutil.Process, psutil.Process]:
    """Return (run, shell, job, the job's child)."""
    mark = tmp_path / "child"
    run = subprocess.Popen([sys.executable, "-c", RUN, str(mark)], env=ENVIRONMENT)
    deadline = time.monotonic() + 30
    while not (mark.is_file() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = psutil.Process(int(mark.read_text()))
    job = child.parent()
    assert job is not None
    shell = job.parent()
    assert shell is not None
    return psutil.Process(run.pid), shell, job, child


@pytest.mark.parametrize("killed", [0, 1], ids=["run", "shell"])
def test_a_job_and_its_children_end_with_what_is_above(tmp_path: Path, killed: int) -> None:
    processes = started(tmp_path)
    processes[killed].send_signal(signal.SIGKILL)
    _, left = psutil.wait_procs(processes[2:], timeout=15)
    for process in processes:
        if process.is_running():
            process.kill()
    assert not left


def test_a_job_goes_on_while_its_run_lives(tmp_path: Path) -> None:
    processes = started(tmp_path)
    time.sleep(1.5)
    running = [process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes]
    processes[0].kill()
    psutil.wait_procs(processes[2:], timeout=15)
    assert running == [True] * 4


HOLD = "import sys, time; from pathlib import Path; from aird.support.lifetime import hold_run_lock; "
HOLD += "hold_run_lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(float(sys.argv[2]))"


def test_one_run_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "lock"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(lock), "600"], env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdout.readline() == b"held\n"
    second = subprocess.run(
        [sys.executable, "-c", HOLD, str(lock), "0"], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert f"another run (process {first.pid}) works in this folder" in second.stderr
    first.kill()  # SIGKILL: nothing is left to remove
    first.wait()
    third = subprocess.run([sys.executable, "-c", HOLD, str(lock), "0"], env=ENVIRONMENT, check=False)
    assert third.returncode == 0


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_named(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a file system is none of this machine's, so its answer is pretended."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RuntimeError, match="knows no locks .* move the folder to a file system with locks"):
        hold_run_lock(tmp_path / "lock")

"""Nothing outlives its run: jobs end with the run that started them, and one run at a time writes here.

SIGKILL leaves a process no chance to clean up after itself. So every job watches the
run that it belongs to, and the lock on the folder is one that the kernel releases.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import FileLock

RUN_VARIABLE = "AIRD_RUN"  # process id of the Snakemake that started a job's shell; set in workflow/planning.py
POLL_SECONDS = 0.5
GRACE_SECONDS = 8.0  # vLLM's launcher needs 5 s at most
# What flock answers where the file system has no locks, and where a network's has nobody who keeps them.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)

_held: list[FileLock] = []  # a lock that nobody refers to is released


def end_with_run() -> None:
    """From now on, end this process and its children when the run or the shell above it is gone.

    Does nothing for a script that is started by hand.
    """
    run = os.environ.get(RUN_VARIABLE, "")
    if run.isdigit():
        watcher = threading.Thread(target=_watch, args=(int(run), os.getppid()), daemon=True, name="end_with_run")
        watcher.start()


def _watch(run: int, shell: int) -> None:
    import psutil

    while os.getppid() == shell and is_alive(run):
        time.sleep(POLL_SECONDS)
    children = psutil.Process().children(recursive=True)
    for child in children:
        _send(child.pid, signal.SIGTERM)
    _, left = psutil.wait_procs(children, timeout=GRACE_SECONDS)
    for child in left:
        _send(child.pid, signal.SIGKILL)
    os._exit(1)  # not sys.exit: the main thread may be deep in a computation


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine is at work."""
    import psutil

    try:
        # A killed process stays a zombie until its parent asks for its exit code.
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def hold_run_lock(path: Path) -> None:
    """Make this process the only run in a folder, until it ends in whatever way.

    Args:
        path: the lock file; its folder is made.

    Raises:
        RuntimeError: another run holds it, the message has its process id; or the file system knows no such locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        taken = take_lock(path)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise RuntimeError(
            f"the file system of this folder knows no locks ({error.strerror}), so two runs could write here at once; "
            "move the folder to a file system with locks, such as a local disk"
        ) from error
    if not taken:
        owner = path.read_text(encoding="utf-8").strip() or "unknown"
        raise RuntimeError(
            f"another run (process {owner}) works in this folder; wait until it ends, or run in a copy of the folder"
        )


def take_lock(path: Path) -> bool:
    """Lock a file until this process ends, and write its id there; return False if another process holds it.

    Raises:
        OSError: the file system knows no locks that end with their process.
    """
    from filelock import FileLock, Timeout  # here, because the workflow imports this module whenever it is parsed

    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    _held.append(lock)
    path.write_text(f"{os.getpid()}\n", encoding="utf-8")
    return True

"""Start a server and end it with its job: `python -I -S server_launcher.py PARENT GRACE SCRATCH COMMAND ...`.

`server_process` starts this file by its path; it imports nothing but the standard library. It stands between the job
and the server, because nothing in a job survives SIGKILL to clean up. It leads the server's session and process group
and holds the read end of a pipe from the job, which the kernel closes however the job ends. (PR_SET_PDEATHSIG would
follow the death of the starting *thread*, and not reach the server's children.) The parent's id is watched as well,
since a fork of the job may hold the pipe open. As a subreaper it inherits the server's orphans and so knows when all
are gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36


def main(parent: int, grace: float, scratch: str, command: list[str]) -> int:
    """Run the command until it ends, the job ends or a signal comes; return its exit code.

    Args:
        parent: process id of the job.
        grace: seconds from SIGTERM to SIGKILL.
        scratch: a folder of the server's own, removed at the end.
        command: the server's command line.
    """
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: signals.append(received))
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while server.poll() is None and not signals and os.getppid() == parent:
        if select.select([0], [], [], 0.1)[0]:
            break
    code = server.poll()
    os.killpg(0, signal.SIGTERM)
    all_gone = _wait_for_children(grace)
    shutil.rmtree(scratch, ignore_errors=True)
    if not all_gone:
        os.killpg(0, signal.SIGKILL)  # this process with them
    return 0 if code is None else code if code >= 0 else 128 - code


def _wait_for_children(seconds: float) -> bool:
    """Tell whether every process below this one ended within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.05)
        except ChildProcessError:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]))

"""Processes of a server that end whenever the job that started them does."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

LOG_TAIL_LINES = 30
LOG_NOISE = re.compile(r"nanobind|^ - (leaked|\.\.\.)|\] Route: |^\s*$")
LOG_ERROR = re.compile(r"^(?!.*\b(INFO|WARNING) ).*\b\w*(Error|Exception): ")
STOP_GRACE_SECONDS = 5.0  # from SIGTERM to SIGKILL; vLLM needs 0.3 s, but longer while it starts

# Stands between the job and vLLM, because nothing in a job survives SIGKILL to clean up. It leads
# the server's session and process group and holds the read end of a pipe from the job, which the
# kernel closes however the job ends. (PR_SET_PDEATHSIG would follow the death of the starting
# *thread*, and not reach vLLM's children.) The parent's id is watched as well, since a fork of the
# job may hold the pipe open. As a subreaper it inherits vLLM's orphans and so knows when all are gone.
LAUNCHER = """
import ctypes, os, select, shutil, signal, subprocess, sys, time
parent, grace, scratch = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
asked = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda *_: asked.append(True))
try:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
except (OSError, AttributeError):
    pass  # not Linux
server = subprocess.Popen(sys.argv[4:], stdin=subprocess.DEVNULL)
while server.poll() is None and not asked and os.getppid() == parent:
    if select.select([0], [], [], 0.1)[0]:
        break
code = server.poll()
os.killpg(0, signal.SIGTERM)
deadline = time.monotonic() + grace
while time.monotonic() < deadline:
    try:
        if os.waitpid(-1, os.WNOHANG)[0] == 0:
            time.sleep(0.05)
    except ChildProcessError:
        shutil.rmtree(scratch, ignore_errors=True)
        sys.exit(0 if code is None else code if code >= 0 else 128 - code)
shutil.rmtree(scratch, ignore_errors=True)
os.killpg(0, signal.SIGKILL)
"""


class ServerProcess:
    """A started server: the launcher's process and the log that it writes."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log_path: Path) -> None:
        self.log_path = log_path
        # Of its own, since vLLM leaves sockets behind in it; the launcher removes it.
        scratch = tempfile.mkdtemp(prefix="aird-")
        launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER]
        launcher += [str(os.getpid()), str(STOP_GRACE_SECONDS), scratch]
        with open(log_path, "wb") as log:
            self.process = subprocess.Popen(
                [*launcher, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, "TMPDIR": scratch},
                start_new_session=True,
            )

    def exit_code(self) -> int | None:
        """Return the code that the server ended with, None while it runs."""
        return self.process.poll()

    def failure(self, what: str) -> RuntimeError:
        """Return an error with `what` happened, the log's first error and its last lines."""
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = [line for line in lines if not LOG_NOISE.search(line)]
        # The engine's error comes long before the API server's traceback about its loss.
        first = next((line for line in lines if LOG_ERROR.search(line)), "no error in the log")
        tail = "\n".join(lines[-LOG_TAIL_LINES:])
        return RuntimeError(f"{what}: {first}\nThe end of its log {self.log_path}:\n{tail}")

    def stop(self) -> None:
        """End every process of the server; return when they are gone."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_GRACE_SECONDS + 5.0)
        deadline = time.monotonic() + 5.0
        # The group outlives its leader while a process is still dying, and with it the port.
        while time.monotonic() < deadline:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                break
            self.process.poll()
            time.sleep(0.02)

"""Processes of a server, whatever its engine, that end whenever the job that started them does.

A server listens on the loopback address only, at a port that nothing else of this machine gets in between.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from aird.evaluation.programs import server_launcher

LOG_TAIL_LINES = 30
LOG_NOISE = re.compile(r"nanobind|^ - (leaked|\.\.\.)|\] Route: |^\s*$")
LOG_ERROR = re.compile(r"^(?!.*\b(INFO|WARNING) ).*\b\w*(Error|Exception): ")
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY")  # of no use to a server
STOP_GRACE_SECONDS = 5.0  # from SIGTERM to SIGKILL; vLLM needs 0.3 s, but longer while it starts


class ServerProcess:
    """A started server: the launcher's process and the log that it writes."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log_path: Path) -> None:
        self.log_path = log_path
        # Of its own, since vLLM leaves sockets behind in it; the launcher removes it.
        scratch = tempfile.mkdtemp(prefix="aird-")
        launcher = [sys.executable, "-I", "-S", server_launcher.__file__]
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


def clean_environment() -> dict[str, str]:
    """Return this process's environment for a server's: without secrets, and kept off the network."""
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    environment |= dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    environment["PYTHONSAFEPATH"] = "1"  # the job's folder must not shadow the server's modules
    return environment


@contextlib.contextmanager
def reserve_port() -> Iterator[int]:
    """Yield a port of 127.0.0.1 that nothing else gets; a server that sets SO_REUSEADDR, as vLLM does, can."""
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        yield int(reservation.getsockname()[1])


class SignalExit(SystemExit):
    """The exit that a signal asked for, with a shell's exit code of it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = number


@contextlib.contextmanager
def signals_as_exit() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into SystemExit, so that `finally` clauses run."""

    def leave(number: int, frame: object) -> NoReturn:
        raise SignalExit(number)

    def ask_again(ignored: sys.UnraisableHookArgs) -> None:
        if not isinstance(ignored.exc_value, SignalExit):
            hook_before(ignored)
            return
        # Python drops what a handler raises in a destructor or a weak reference's callback. The signal
        # comes again once that has returned, from another thread, as it would be lost again in this one.
        again = threading.Timer(0.1, os.kill, (os.getpid(), ignored.exc_value.signal))
        again.daemon = True
        again.start()

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; the launcher still ends the server
        return
    hook_before = sys.unraisablehook
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    sys.unraisablehook = ask_again
    try:
        yield
    finally:
        sys.unraisablehook = hook_before
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

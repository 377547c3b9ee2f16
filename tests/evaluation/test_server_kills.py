"""A job that is killed or ended leaves nothing of its server behind, whatever the engine: real servers, real kills."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from servers import DEADLINE_SECONDS, Job, gguf_checkpoint, is_listening, server_port, session_members, wait_for

from aird.evaluation.engines.llama_cpp import LlamaCpp
from aird.evaluation.engines.vllm import Vllm

pytestmark = pytest.mark.thorough


@dataclass(frozen=True)
class Case:
    """An engine and a checkpoint that it serves.

    Attributes:
        engine: who serves.
        checkpoint: what is served.
        mark: what tells that the server's own process has started: a part of its name or of its command line.
        seconds: within which a job that is told to end has ended.
    """

    engine: Vllm | LlamaCpp
    checkpoint: Path
    mark: str
    seconds: float


@pytest.fixture(scope="module", params=["vllm", "llama.cpp"])
def case(request: pytest.FixtureRequest, original: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if request.param == "vllm":
        engine = Vllm(request.getfixturevalue("vllm_python"))
        return Case(engine, original, "EngineCore", DEADLINE_SECONDS)
    checkpoint = gguf_checkpoint(original, tmp_path_factory.mktemp("gguf"))
    engine = LlamaCpp(request.getfixturevalue("llama_cpp_python"))
    return Case(engine, checkpoint, "llama_cpp_server.py", 60.0)


@pytest.fixture
def job(tmp_path: Path, case: Case) -> Iterator[Job]:
    """A job that has been started, and whose processes do not outlive the test."""
    started = Job(tmp_path, case.checkpoint, case.engine)
    session = started.session()
    try:
        yield started
    finally:
        started.end(session)


def has_started(session: int, mark: str) -> bool:
    """Tell whether a session has the process that a server is known by."""
    for process in session_members(session):
        with contextlib.suppress(psutil.NoSuchProcess):  # servers also start short-lived ones
            # The launcher's command line has the server's in it.
            if process.pid != session and mark in " ".join([process.name(), *process.cmdline()]):
                return True
    return False


def test_killed_while_serving(job: Job) -> None:
    """SIGKILL of a job with requests under way leaves no process of the server, no used port and no file."""
    session = job.session()
    wait_for(job.ready.exists, "the server")
    port = server_port(session)
    assert is_listening(port)
    scratch = set()
    for process in session_members(session):
        with contextlib.suppress(psutil.NoSuchProcess):
            scratch.add(process.environ().get("TMPDIR", ""))
    scratch.discard("")
    job.process.kill()
    wait_for(lambda: not session_members(session), "the server to end")
    assert not is_listening(port)
    assert scratch
    assert not any(Path(folder).exists() for folder in scratch)


def test_killed_while_starting(job: Job, case: Case) -> None:
    """SIGKILL of a job whose server has just started leaves no process."""
    session = job.session()
    wait_for(lambda: has_started(session, case.mark), "the server's process")
    port = server_port(session)
    job.process.kill()
    wait_for(lambda: not session_members(session), "the server to end")
    assert not is_listening(port)


def test_terminated(job: Job, case: Case) -> None:
    """SIGTERM of a job with requests under way ends it by SystemExit and leaves no process."""
    session = job.session()
    wait_for(job.ready.exists, "the server")
    port = server_port(session)
    job.process.terminate()
    _, errors = job.process.communicate(timeout=case.seconds)
    assert job.process.returncode == 128 + signal.SIGTERM, errors[-5000:]
    assert session_members(session) == []
    assert not is_listening(port)

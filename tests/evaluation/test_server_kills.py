"""A job that is killed or ended leaves nothing of its server behind, whatever the engine: real servers, real kills."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ready_made
from servers import DEADLINE_SECONDS, Job, is_listening, server_port, session_members, wait_for

from aird.compression.given import import_given
from aird.evaluation.engines.llama_cpp import LlamaCpp
from aird.evaluation.engines.vllm import Vllm

pytestmark = pytest.mark.thorough
# What tells that the server's own process has started: a part of its name or of its command line.
SERVERS = {"vllm": "EngineCore", "llama.cpp": "llama_cpp_server.py"}


@pytest.fixture(scope="module", params=list(SERVERS))
def engine(
    request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Vllm | LlamaCpp, Path, str]:
    """Return an engine, a checkpoint that it serves, and what its process is known by."""
    if request.param == "vllm":
        return Vllm(request.getfixturevalue("vllm_python")), tiny_folder("llama"), SERVERS[request.param]
    folder = tmp_path_factory.mktemp("gguf")
    ready_made.gguf_file(tiny_folder("llama"), folder / "q8.gguf", ["Q8_0"])
    import_given(folder / "q8.gguf", tiny_folder("llama"), folder / "checkpoint")
    python = request.getfixturevalue("llama_cpp_python")
    return LlamaCpp(python), folder / "checkpoint", SERVERS[request.param]


@pytest.fixture
def job(tmp_path: Path, engine: tuple[Vllm | LlamaCpp, Path, str]) -> Iterator[Job]:
    """A job that has been started, and whose processes do not outlive the test."""
    started = Job(tmp_path, engine[1], engine[0])
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
    scratch.discard(os.environ.get("TMPDIR", ""))
    job.process.kill()
    wait_for(lambda: not session_members(session), "the server to end")
    assert not is_listening(port)
    assert any(scratch) and not any(Path(folder).exists() for folder in scratch if folder)


def test_killed_while_starting(job: Job, engine: tuple[Vllm | LlamaCpp, Path, str]) -> None:
    """SIGKILL of a job whose server has just started leaves no process."""
    session = job.session()
    wait_for(lambda: has_started(session, engine[2]), "the server's process")
    port = server_port(session)
    job.process.kill()
    wait_for(lambda: not session_members(session), "the server to end")
    assert not is_listening(port)


def test_terminated(job: Job) -> None:
    """SIGTERM of a job with requests under way ends it by SystemExit and leaves no process."""
    session = job.session()
    wait_for(job.ready.exists, "the server")
    port = server_port(session)
    job.process.terminate()
    _, errors = job.process.communicate(timeout=DEADLINE_SECONDS)
    assert job.process.returncode == 128 + signal.SIGTERM, errors[-5000:]
    assert session_members(session) == []
    assert not is_listening(port)

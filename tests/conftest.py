"""What several test files share: tiny models, made once a run, and vLLM's environment, built once."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from filelock import FileLock
from grid import tiny_configuration
from project import command, copy_project, write_configuration, write_vllm_lock
from servers import small_vllm
from tiny_model import build_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from aird.evaluation import server_process
from aird.evaluation.engine import ServerSettings
from aird.evaluation.vllm_client import VllmClient
from aird.models import loading
from aird.prompts.chat import chat_tokens
from aird.support.files import read_json, write_json
from aird.support.lifetime import hold_run_lock

NUMBERS = itertools.count()
ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT / "results" / "tests"  # what the processes of `pytest -n` share
VLLM = ("AIRD_VLLM_PYTHON", "vllm")  # the variable that names its Python, and the workflow's node

INSTRUCTIONS = (
    "Name a colour.",
    "Explain how a bicycle pump works, step by step.",
    "How do I write a letter to my landlord?",
    "What is 2 + 2?",
    "Tell me, in one short sentence, why the sky is blue in the morning!",
)


SERVER_SETTINGS = ServerSettings(maximum_model_length=1024, threads=1, dtype="float32")


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as thorough what needs a browser, or a server beside those of the tiny run; let the tiny run wait.

    While it is at work, the tests that do not need it run.
    """
    for item in items:
        servers = {"vllm_python", "llama_cpp_python", "gguf_python"} & needs(item)
        if "browser" in needs(item) or (servers and "finished" not in needs(item)):
            item.add_marker(pytest.mark.thorough)
    # Of those that need it, short files come last, so that no process works alone for long at the end.
    items.sort(key=lambda item: ("finished" in needs(item), item.path.parent != ROOT / "tests"))


def needs(item: pytest.Item) -> set[str]:
    """Return the names of a test's fixtures, and of theirs."""
    return set(getattr(item, "fixturenames", ()))


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chat settings and trust in code hold for the process of a command; those of a test end with it."""
    for name in ("_chat", "_trusted"):
        monkeypatch.setattr(loading, name, [])


@pytest.fixture(autouse=True, scope="session")
def no_answers_of_others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures of several tests keep answers apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRD_CACHE", str(tmp_path_factory.mktemp("answers")))
        yield


@pytest.fixture(autouse=True)
def own_answers(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command of one test was answered is not kept for the next, which may change what answers."""
    monkeypatch.setenv("AIRD_CACHE", str(tmp_path_factory.getbasetemp() / f"answers-{next(NUMBERS)}"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, much slower on busy cores; commands inherit this.

    Snakemake gives each job of a workflow its own number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a family ("llama", "qwen2") to its bfloat16 checkpoint folder; only to be read."""
    root = tmp_path_factory.mktemp("tiny-models")

    def folder(family: str) -> Path:
        return root / family if (root / family).exists() else build_tiny_model(root / family, family=family)

    return folder


@pytest.fixture(scope="session")
def original(tiny_folder: Callable[[str], Path]) -> Path:
    """Return the checkpoint folder of the tiny llama; only to be read."""
    return tiny_folder("llama")


@pytest.fixture(params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> Any:
    """Return a tiny model in float32, of each family in turn; a fresh one for every test."""
    return load_float32(tiny_folder(request.param))


@pytest.fixture
def llama(original: Path) -> Any:
    """Return the tiny llama in float32, a fresh one."""
    return load_float32(original)


@pytest.fixture(scope="session")
def tokenizer(original: Path) -> Any:
    """Return the tokenizer of the tiny models."""
    return AutoTokenizer.from_pretrained(original)


@pytest.fixture
def all_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every reply that a patch learns from or is chosen by be a refusal: a random model refuses nothing by itself."""
    for module in ("replies", "validation"):
        monkeypatch.setattr(f"aird.patching.{module}.jailbroken_arditi", lambda _: False)


@pytest.fixture(scope="session")
def prompts(tokenizer: Any) -> list[list[int]]:
    """Return the token ids of five templated prompts of different lengths."""
    return [chat_tokens(tokenizer, instruction) for instruction in INSTRUCTIONS]


def load_float32(folder: Path) -> Any:
    """Return a checkpoint as a float32 model."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu").eval()


@pytest.fixture
def pretend_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts an nvidia-smi with so many GPUs on PATH, of so much free memory each, MiB."""
    tool = tmp_path / "bin" / "nvidia-smi"

    def pretend(count: int, *free: int) -> None:
        tool.parent.mkdir(exist_ok=True)
        lines = "\n".join(f"echo 'GPU {index}: Pretended (UUID: GPU-{index})'" for index in range(count))
        memory = "\n".join(f"echo '{index}, GPU-{index}, {each}'" for index, each in enumerate(free))
        kinds = "\n".join(f"echo '{index}, GPU-{index}, 8.0, Pretended'" for index in range(count))
        queried = f"case $1 in *memory.free) true\n{memory}\nexit;; *compute_cap*) true\n{kinds}\nexit;; esac\n"
        tool.write_text(f"#!/bin/sh\n{queried}{lines}\n", encoding="utf-8")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
        # What a test's process takes is so taken back, also where the variable was absent before.
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    return pretend


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """Return the Python of an environment that holds vLLM.

    AIRD_VLLM_PYTHON names one; otherwise the workflow's own node builds it below results/, where
    the next run finds it.
    """
    return server_python(*VLLM)


@pytest.fixture(scope="session")
def llama_cpp_python() -> Path:
    """Return the Python of an environment that holds xllamacpp: AIRD_LLAMA_CPP_PYTHON, or the workflow's own."""
    return server_python("AIRD_LLAMA_CPP_PYTHON", "llama_cpp")


@pytest.fixture(scope="session")
def gguf_python() -> Path:
    """Return the Python of an environment that holds llama.cpp's quantiser: AIRD_GGUF_PYTHON, or the workflow's own."""
    recipe = {"file": {"recipe": "gguf", "type": "Q8_0"}}  # the node exists where a recipe uses it
    return server_python("AIRD_GGUF_PYTHON", "gguf", "--config", f"compressions={json.dumps(recipe)}")


def server_python(variable: str, node: str, *flags: str) -> Path:
    """Return the Python that a variable names, or that of a node of the workflow, which is built with these flags."""
    if variable in os.environ:
        return Path(os.environ[variable])
    record = ROOT / "results" / "environments" / f"{node}.json"
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--quiet", "all", *flags, "--"]
    SHARED.mkdir(parents=True, exist_ok=True)
    with FileLock(SHARED / "environments.lock"):  # one at a time of the processes that share the tests
        subprocess.run([*command, str(record.relative_to(ROOT))], cwd=ROOT, check=True)
    return record.parent / json.loads(record.read_text())["python"]


@pytest.fixture(scope="session")
def served(
    vllm_python: Path, original: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[VllmClient, list[int]]]:
    """Serve the tiny llama in float32 by vLLM; yield the client, and the ports that were tried.

    The first port is one where something listens already.
    """
    ports: list[int] = []
    reserve = server_process.reserve_port

    @contextlib.contextmanager
    def first_taken() -> Iterator[int]:
        with contextlib.ExitStack() as stack:
            if ports:
                port = stack.enter_context(reserve())
            else:
                listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                port = listener.getsockname()[1]
            ports.append(port)
            yield port

    log_path = tmp_path_factory.mktemp("log") / "new folder" / "server.log"
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server_process, "reserve_port", first_taken)
            client = stack.enter_context(small_vllm(vllm_python).serve(original, SERVER_SETTINGS, log_path))
        yield client, ports


@pytest.fixture(scope="session")
def tiny_run() -> Iterator[Path]:
    """Start the run of the tiny grid, unless another process of these tests has; yield where its exit code will be.

    Its environment of vLLM is built first, while tests run. The folder stays in results/tests/ for the next call of
    pytest. The workflow itself sees what has to run again: nothing, or what depends on sources that have changed since.
    """
    code = SHARED / f"exit-code.{os.environ.get('PYTEST_XDIST_TESTRUNUID', 'alone')}"
    lock = SHARED / "lock"
    try:
        hold_run_lock(lock)
    except RuntimeError:
        if not belongs_to_these_tests(lock):
            raise
        yield code
        return
    for left in SHARED.glob("exit-code.*"):
        left.unlink()
    project = SHARED / "finished"
    for path in project.glob("*"):
        if path.name not in ("results", ".snakemake"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    copy_project(project)
    write_configuration(project, tiny_configuration(project, ["tiny"], {"lock": "inputs/vllm.lock.txt"}))
    runs: list[subprocess.Popen[bytes]] = []

    def work() -> None:
        log = SHARED / "log"
        try:
            write_vllm_lock(project, server_python(*VLLM))
            with log.open("wb") as stream:
                runs.append(subprocess.Popen(command(), cwd=project, stdout=stream, stderr=stream))
            write_json(code, runs[0].wait())
        except Exception:
            log.write_text(traceback.format_exc(), encoding="utf-8")
            write_json(code, 1)
            raise

    worker = threading.Thread(target=work)
    worker.start()
    yield code
    if "PYTEST_XDIST_WORKER" not in os.environ:  # else another process may still wait for the run
        for run in runs:
            run.terminate()
    worker.join()


def belongs_to_these_tests(lock: Path) -> bool:
    """Tell whether a lock's owner was started by the process that started this one (pytest -n)."""
    for _ in range(20):  # the owner writes its number a moment after it has the lock
        with contextlib.suppress(ValueError, psutil.Error):
            if psutil.Process(int(lock.read_text(encoding="utf-8"))).ppid() == os.getppid():
                return True
        time.sleep(0.1)
    return False


@pytest.fixture(autouse=True, scope="session")
def start_tiny_run(request: pytest.FixtureRequest) -> None:
    """Start the tiny run at once if a test will need it: those that do not need it run meanwhile."""
    if any("finished" in needs(item) for item in request.session.items):
        with contextlib.suppress(Exception):  # it is raised again for the tests that need the run
            request.getfixturevalue("tiny_run")


@pytest.fixture(scope="session")
def finished(tiny_run: Path) -> Path:
    """Return a copy of the project in which the tiny grid has run to its end; leave it as it is."""
    while not tiny_run.exists():
        running = belongs_to_these_tests(SHARED / "lock")
        assert running or tiny_run.exists(), "the process that started the tiny run has ended"
        time.sleep(0.2)
    assert read_json(tiny_run) == 0, (SHARED / "log").read_text(encoding="utf-8")[-6000:]
    return SHARED / "finished"


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished project that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "project", symlinks=True))

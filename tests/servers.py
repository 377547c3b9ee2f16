"""A small suite, jobs that start a server, what is left of them, and servers of somebody else's: for all engines."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ready_made
from grid import EVERYDAY_CHOICES

from aird.compression.ready_made import import_given
from aird.evaluation import server_process
from aird.evaluation.engine import Completion, Engine, ServerSettings
from aird.evaluation.engines.transformers import Transformers
from aird.evaluation.engines.url import Url, UrlSettings
from aird.evaluation.engines.vllm import Vllm, VllmSettings
from aird.evaluation.judgements import judge_completions
from aird.evaluation.questions import Asked
from aird.evaluation.suite_run import Deployment, Places, evaluate_suite
from aird.models.loading import load_tokenizer
from aird.prompts.chat import chat_tokens
from aird.settings.judges import JudgeSettings
from aird.settings.suites import Serving, Suite

SUITE = Suite.model_validate({"harmful": {"set": "a"}, "harmless": {"set": "b"}, "maximum_new_tokens": 4})
SERVING = Serving(maximum_model_length=256, parity_prompts=4)
RECORDS = {
    kind: [{"id": f"{kind}-{text}", "instruction": f"{text} {kind}."} for text in ("Boil", "Paint", "Write")]
    for kind in ("harmful", "harmless")
}
# Answers that are asked about, whatever the tiny model itself says.
REFERENCE = [
    {"id": "a", "kind": "harmless", "instruction": "Boil an egg.", "completion": "Put the egg into boiling water."}
]
DEADLINE_SECONDS = 400.0  # a server starts in 30 s, on a busy and slow machine in minutes
# So many tokens that a server is still busy when it is killed.
LONG_PROMPTS = [[1, first, second, 2, 201] for first in range(20) for second in range(100)]


def asking(**settings: Any) -> Suite:
    """Return the small suite with other settings."""
    return Suite.model_validate({**SUITE.model_dump(), **settings})


def evaluate(
    engine: Engine, checkpoint: Path, folder: Path, patch: Path | None = None, suite: Suite = SUITE, **options: Any
) -> tuple[list[Any], Any]:
    """Evaluate the small suite; `options` are those of `Asked` and `Deployment`, and `folder` takes what is written."""
    asked: dict[str, Any] = {"suite": suite, "records": RECORDS, "reference": REFERENCE, "seed": 3}
    deployment: dict[str, Any] = {"serving": SERVING}
    for name, value in options.items():
        (deployment if name in ("serving", "key_value_cache_dtype") else asked)[name] = value
    places = Places(folder / "scratch", folder / "log")
    return evaluate_suite(Asked(**asked), Deployment(checkpoint, patch, engine, **deployment), places)


def chat_prompts(checkpoint: Path) -> list[list[int]]:
    """Return seventy chat prompts of different lengths, which are more than two requests."""
    tokenizer = load_tokenizer(checkpoint)
    texts = [f"Question {number}: " + "why? " * (number % 9) for number in range(70)]
    return [chat_tokens(tokenizer, text) for text in texts]


def gguf_checkpoint(original: Path, folder: Path) -> Path:
    """Write a checkpoint as a GGUF file of eight bits; return it imported, the file beside its decoded weights."""
    ready_made.gguf_file(original, folder / "q8.gguf", ["Q8_0"])
    import_given(folder / "q8.gguf", original, folder / "checkpoint")
    return folder / "checkpoint"


def small_vllm(python: Path) -> Vllm:
    """Return vLLM with little memory for keys and values."""
    return Vllm(python, VllmSettings(key_value_cache_gib=0.25))


def server_at(address: str) -> Url:
    """Return a running server."""
    return Url(options=UrlSettings(address=address))


class Answers:
    """Stands in for a server: gives the same answers in turn, whatever the prompts, and keeps what it was asked."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.prompts: list[Sequence[int]] = []
        self.maximum_new_tokens = 0

    def complete(self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, **_: Any) -> list[Completion]:
        self.prompts, self.maximum_new_tokens = list(prompts), maximum_new_tokens
        return [Completion(self.texts[n % len(self.texts)], (1,), "stop") for n in range(len(prompts))]


@dataclass(frozen=True)
class Stand(Transformers):
    """Transformers in whose place a client answers; it keeps what it is started with."""

    client: Any = None
    started: list[ServerSettings] = field(default_factory=list)

    @contextlib.contextmanager
    def serve(self, checkpoint: Path, settings: ServerSettings, *_: Any) -> Iterator[Any]:
        self.started.append(settings)
        yield self.client


def judgement(
    checkpoint: Path, engine: Engine, settings: JudgeSettings, records: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return what a judge says of completions."""
    return judge_completions(checkpoint, engine, records, settings, 0, checkpoint / "log")


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Return when `condition` is true; fail after a generous deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.1)


def session_members(session: int) -> list[psutil.Process]:
    """Return the living processes of a session, which is where a server and all its children are."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def is_listening(port: int) -> bool:
    """Tell whether something accepts connections on a port of the loopback address."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def server_port(session: int) -> int:
    """Return the port on vLLM's command line."""
    for process in session_members(session):
        with contextlib.suppress(psutil.NoSuchProcess):
            if match := re.search(r"--port=(\d+)", " ".join(process.cmdline())):
                return int(match[1])
    raise AssertionError(f"no process of session {session} names a port")


class Job:
    """A Python process that runs `serve` of an engine with a Python of its own, as a workflow's job does."""

    def __init__(self, folder: Path, checkpoint: Path, engine: Engine) -> None:
        self.ready = folder / "ready"
        self.log_path = folder / "server.log"
        script = f"""
            from pathlib import Path
            from aird.evaluation.engine import ServerSettings
            from {type(engine).__module__} import {type(engine).__name__} as Engine
            settings = ServerSettings(1024, threads=1)
            with Engine(Path({str(engine.python)!r})).serve(Path({str(checkpoint)!r}), settings,
                                                            Path({str(self.log_path)!r})) as client:
                Path({str(self.ready)!r}).touch()
                client.complete({LONG_PROMPTS!r}, 900)
        """
        root = Path(server_process.__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={**os.environ, "PYTHONPATH": str(root)},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.job = psutil.Process(self.process.pid)

    def session(self) -> int:
        """Return the session of the job's server, once it is started."""
        wait_for(self.job.children, "the launcher")
        launcher = self.job.children()[0].pid
        wait_for(lambda: os.getsid(launcher) == launcher, "the launcher's session")
        return launcher

    def end(self, session: int) -> None:
        """Kill the job, and what of its server outlives it."""
        self.process.kill()
        self.process.communicate()
        with contextlib.suppress(AssertionError):  # the launcher cleans up if it can
            wait_for(lambda: not session_members(session), "the server to end")
        for process in session_members(session):
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextlib.contextmanager
def answering(answer: Callable[[str, dict[str, Any] | None], tuple[int, Any]], key: str | None = None) -> Iterator[str]:
    """Run an HTTP server, of JSON mostly; yield its address.

    Args:
        answer: status and answer from a path and, of a POST, its body; bytes go out as they are.
        key: what requests have to come with; None asks for none.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Print nothing."""

        def send(self, status: int, value: Any) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(value if isinstance(value, bytes) else json.dumps(value).encode())

        def answer(self, body: dict[str, Any] | None) -> None:
            allowed = key is None or self.headers["Authorization"] == f"Bearer {key}"
            self.send(*answer(self.path, body) if allowed else (401, {"error": {"message": "no key"}}))

        def do_GET(self) -> None:
            self.answer(None)

        def do_POST(self) -> None:
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def write_tasks(folder: Path, rows: Sequence[Mapping[str, str]], longest: int) -> None:
    """Write two tasks of lm-eval: `scored` scores each row's `word` behind its `query`, `told` generates an `answer`.

    Args:
        folder: a new folder.
        rows: with `query`, `word` and `answer`.
        longest: tokens of a generated answer.
    """
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.copy(EVERYDAY_CHOICES / "utils.py", folder / "utils.py")
    shared = """dataset_path: json
custom_dataset: !function utils.load_questions
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
doc_to_text: "{{query}}"
"""
    scored = """task: scored
output_type: loglikelihood
doc_to_target: " {{word}}"
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]
"""
    told = f"""task: told
output_type: generate_until
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], max_gen_toks: {longest}}}
metric_list: [{{metric: exact_match}}]
"""
    for name, text in {"scored": scored, "told": told}.items():
        (folder / f"{name}.yaml").write_text(text + shared, encoding="utf-8")

"""Run a vLLM server for as long as a job needs it, and talk to it.

The server is another Python environment's process, so this module imports neither
vLLM nor torch. Prompts go out as token ids: what is measured never depends on how
the server would have applied a chat template or added special tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import httpx

from aird.files import read_json
from aird.gpus import VISIBLE, listed_gpus
from aird.processor import multiplies_bfloat16

MODEL_NAME = "checkpoint"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the ranks that vLLM's --max-lora-rank accepts
PROMPTS_PER_REQUEST = 32  # bounds the size of a body; vLLM batches across requests anyway
PORT_ATTEMPTS = 4
LOG_TAIL_LINES = 30
LOG_NOISE = re.compile(r"nanobind|^ - (leaked|\.\.\.)|\] Route: |^\s*$")
LOG_ERROR = re.compile(r"^(?!.*\b(INFO|WARNING) ).*\b\w*(Error|Exception): ")
POLL_SECONDS = 0.2
STOP_GRACE_SECONDS = 5.0  # from SIGTERM to SIGKILL; vLLM needs 0.3 s, but longer while it starts
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY")  # of no use to it

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

# Not `python -m`: multiprocessing's spawn would import the API server again in the engine's process.
RUN_SERVER = "import runpy; runpy.run_module('vllm.entrypoints.openai.api_server', run_name='__main__')"


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """What a server is started with.

    Attributes:
        maximum_model_length: most tokens of a prompt and its completion together.
        maximum_sequences: most sequences in one batch.
        key_value_cache_gib: memory of the key/value cache in GiB, allocated at start.
        threads: OpenMP threads on the CPU; None leaves OMP_NUM_THREADS as it is.
        adapters: folder of a PEFT LoRA adapter by the name to ask for it.
        start_timeout_seconds: how long the server may take until it is healthy.
        dtype: vLLM's --dtype; None takes the checkpoint's, or on some CPUs float32, as `load_model` does.
        seed: vLLM's --seed (greedy decoding does not depend on it).
        trust_remote_code: let vLLM run modelling code that the checkpoint brings.
        extra_arguments: further arguments of vLLM's API server; they win over the above.
    """

    maximum_model_length: int
    maximum_sequences: int = 256
    key_value_cache_gib: float = 1.0
    threads: int | None = None
    adapters: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    start_timeout_seconds: float = 600.0
    dtype: str | None = None
    seed: int = 0
    trust_remote_code: bool = False
    extra_arguments: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Completion:
    """One greedy completion.

    Attributes:
        text: the generated text without special tokens.
        token_ids: the generated tokens, an end-of-sequence token included.
        finish_reason: "stop" (an end-of-sequence token) or "length".
        first_token_logprobs: log-probabilities (nats) of the most likely first tokens by
            token id, or None if they were not asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    first_token_logprobs: dict[int, float] | None = None

    @property
    def token_count(self) -> int:
        """Number of generated tokens."""
        return len(self.token_ids)


def detect_accelerator() -> Literal["cpu", "cuda"]:
    """Return "cuda" if nvidia-smi lists a GPU that CUDA_VISIBLE_DEVICES does not hide, else "cpu"."""
    hidden = os.environ.get(VISIBLE, "0").strip() in ("", "-1")
    return "cuda" if not hidden and listed_gpus() else "cpu"


class _Server:
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


class Client:
    """Asks one server for completions and log-probabilities."""

    def __init__(
        self, base_url: str, model_name: str, server: _Server | None = None, *, prompt_logprobs: bool = True
    ) -> None:
        """Name the server to ask; `serve` does this."""
        self._base_url = base_url.rstrip("/")
        self._model_name = model_name
        self._server = server
        self._prompt_logprobs = prompt_logprobs

    @property
    def base_url(self) -> str:
        """The server's address without a final slash and without /v1."""
        return self._base_url

    @property
    def model_name(self) -> str:
        """The name under which the server knows the checkpoint without an adapter."""
        return self._model_name

    def version(self) -> str:
        """Return the server's vLLM version."""
        return str(self._get("/version")["version"])

    def models(self) -> list[dict[str, Any]]:
        """Return the server's models and adapters as /v1/models lists them."""
        return list(self._get("/v1/models")["data"])

    def wait_until_ready(self, mark: str, timeout_seconds: float) -> None:
        """Return when the started server is healthy and lists a model named `mark`.

        Raises:
            RuntimeError: it ended, or was not ready in time.
        """
        assert self._server is not None
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            code = self._server.exit_code()
            if code is not None:
                raise self._server.failure(f"the vLLM server ended with exit code {code} while starting")
            with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
                self._get("/health")
                if mark in [model["id"] for model in self.models()]:
                    return
            time.sleep(POLL_SECONDS)
        raise self._server.failure(f"the vLLM server was not ready after {timeout_seconds:g} s")

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        maximum_new_tokens: int,
        *,
        adapter: str | None = None,
        logprobs: int | None = None,
    ) -> list[Completion]:
        """Complete each prompt greedily.

        Args:
            prompts: token ids of each prompt, special tokens included.
            maximum_new_tokens: where to cut a completion.
            adapter: name of a LoRA adapter in `ServerSettings.adapters`, None for none.
            logprobs: how many of the first token's log-probabilities to return.

        Returns:
            One completion a prompt, in the order of `prompts`.

        Raises:
            RuntimeError: the server refused, failed or ended.
            ValueError: the checkpoint returns NaN (only seen with `logprobs`).
        """
        parameters: dict[str, Any] = {"max_tokens": maximum_new_tokens}
        if logprobs is not None:
            parameters |= {"logprobs": logprobs, "return_tokens_as_token_ids": True}
        return [_read_completion(choice) for choice in self._choices(prompts, parameters, adapter)]

    def token_logprobs(
        self, prompts: Sequence[Sequence[int]], *, adapter: str | None = None
    ) -> list[list[float | None]]:
        """Return the log-probability (nats) of each prompt token given those before it.

        Args:
            prompts: token ids; shorter than the maximum model length, as one token is generated.
            adapter: name of a LoRA adapter, None for none.

        Returns:
            A list as long as the prompt for each prompt; its first element is None.

        Raises:
            RuntimeError: the server refused, failed or ended.
            ValueError: the checkpoint returns NaN, or the server would crash (LoRA on the CPU).
        """
        if not self._prompt_logprobs:
            raise ValueError("vLLM on the CPU crashes on prompt log-probabilities when adapters are enabled")
        choices = self._choices(prompts, {"max_tokens": 1, "prompt_logprobs": 0}, adapter)
        values: list[list[float | None]] = []
        for prompt, choice in zip(prompts, choices, strict=True):
            pairs = zip(prompt[1:], choice["prompt_logprobs"][1:], strict=True)
            values.append([None, *(_finite(entry[str(token)]["logprob"]) for token, entry in pairs)])
        return values

    def _get(self, path: str) -> dict[str, Any]:
        with httpx.Client(**self._http_settings(5.0)) as http:
            response = http.get(path).raise_for_status()
            return dict(response.json()) if response.content else {}

    def _http_settings(self, timeout: float | None) -> dict[str, Any]:
        key = os.environ.get("VLLM_API_KEY")  # which vLLM takes its own key from
        return {
            "base_url": self._base_url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": timeout,
            "trust_env": self._server is None,  # a proxy cannot reach our loopback address
        }

    def _choices(
        self, prompts: Sequence[Sequence[int]], parameters: dict[str, Any], adapter: str | None
    ) -> list[dict[str, Any]]:
        """Post all prompts to /v1/completions; return the choices in the order of `prompts`."""
        # Set even where they are vLLM's defaults: a checkpoint's generation_config.json changes those.
        greedy = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "n": 1, "stream": False}
        neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        common = {"model": adapter or self._model_name, "return_token_ids": True, **greedy, **neutral}
        bodies: list[dict[str, Any]] = []
        for start in range(0, len(prompts), PROMPTS_PER_REQUEST):
            batch = [list(prompt) for prompt in prompts[start : start + PROMPTS_PER_REQUEST]]
            bodies.append({**common, **parameters, "prompt": batch})
        choices: list[dict[str, Any]] = []
        for body, answer in zip(bodies, asyncio.run(self._send(bodies)), strict=True):
            if len(answer["choices"]) != len(body["prompt"]):
                raise RuntimeError("the server answered with another number of completions than prompts")
            choices.extend(sorted(answer["choices"], key=lambda choice: int(choice["index"])))
        return choices

    async def _send(self, bodies: Sequence[dict[str, Any]]) -> list[Any]:
        """Post all bodies at once; return the decoded answers in the same order."""
        unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        # No time-out: with all requests in flight the last one's wait is the whole job. A server of
        # ours is watched instead; a user's server is trusted to answer or close the connection.
        async with httpx.AsyncClient(**self._http_settings(None), limits=unlimited) as http:
            tasks = [asyncio.create_task(self._post(http, body)) for body in bodies]
            pending = set(tasks)
            try:
                while pending:
                    done, pending = await asyncio.wait(
                        pending, timeout=POLL_SECONDS, return_when=asyncio.FIRST_EXCEPTION
                    )
                    for task in done:
                        task.result()
                    if pending and self._server is not None and self._server.exit_code() is not None:
                        await self._raise_lost("requests were under way")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            return [task.result() for task in tasks]

    async def _post(self, http: httpx.AsyncClient, body: dict[str, Any]) -> Any:
        try:
            response = await http.post("/v1/completions", json=body)
        except httpx.TransportError as error:
            await self._raise_lost(repr(error))
        if response.status_code == 200:
            return response.json()
        message = response.text
        with contextlib.suppress(ValueError, TypeError, KeyError):
            message = str(response.json()["error"]["message"])
        if "not JSON compliant" in message:  # how the server's JSON encoder refuses NaN
            _finite(math.nan)
        what = f"the vLLM server answered HTTP {response.status_code}: {message}"
        if self._server is not None and response.status_code >= 500:
            raise self._server.failure(what)
        raise RuntimeError(what)

    async def _raise_lost(self, reason: str) -> NoReturn:
        """Raise the error for a connection that broke, with the server's exit code if it ended."""
        if self._server is None:
            raise RuntimeError(f"lost the vLLM server at {self._base_url}: {reason}")
        for _ in range(25):  # the connection breaks a moment before the processes are gone
            if self._server.exit_code() is not None:
                break
            await asyncio.sleep(POLL_SECONDS)
        code = self._server.exit_code()
        state = "is still running" if code is None else f"ended with exit code {code}"
        raise self._server.failure(f"the vLLM server {state} but did not answer ({reason})")


def _read_completion(choice: Mapping[str, Any]) -> Completion:
    first: dict[int, float] | None = None
    if choice["logprobs"] is not None:
        top = choice["logprobs"]["top_logprobs"][0]
        first = {int(name.removeprefix("token_id:")): _finite(value) for name, value in top.items()}
    return Completion(choice["text"], tuple(choice["token_ids"]), choice["finish_reason"], first)


def _finite(logprob: float | None) -> float:
    if logprob is None or math.isnan(logprob):
        raise ValueError("the checkpoint returns NaN log-probabilities: its weights or activations overflow")
    return float(logprob)


@contextlib.contextmanager
def serve(
    checkpoint: Path, python: Path | None, settings: ServerSettings, log_path: Path, url: str | None = None
) -> Iterator[Client]:
    """Serve `checkpoint` while the context is open, or use the server at `url`.

    The server listens on a free port of 127.0.0.1. Its processes are ended when the
    context closes and when the job ends in any way, SIGKILL included; SIGTERM and SIGINT
    raise SystemExit inside the context (only if it is opened in the main thread).

    Args:
        checkpoint: a folder with the model and its tokenizer.
        python: interpreter of the environment with vLLM; None means this one.
        settings: how to start the server; of no effect on a server at `url`, which has to
            offer the adapters under the same names.
        log_path: receives what the server prints; its folder is made.
        url: address of a running vLLM server without /v1. VLLM_API_KEY is its key.

    Yields:
        A client of the server, which is ready.

    Raises:
        RuntimeError: the server did not start in time or ended; the message has the end of its log.
        ValueError: `python` is not an executable, or an adapter's rank is above vLLM's.
    """
    with _signals_as_exit():
        if url is not None:
            yield _use_server(url, settings)
            return
        interpreter = shutil.which(str(python or sys.executable))
        if interpreter is None:
            raise ValueError(f"{python} is no executable Python interpreter")
        log_path.parent.mkdir(parents=True, exist_ok=True)
        on_cpu = detect_accelerator() == "cpu"
        environment = _environment(interpreter, settings, on_cpu)
        for attempt in range(1, PORT_ATTEMPTS + 1):
            # A name of its own tells our server from another job's that took the port in between.
            mark = f"aird-{secrets.token_hex(8)}"
            with _reserve_port() as port:
                arguments = _arguments(checkpoint, settings, port, mark, on_cpu)
                server = _Server([interpreter, "-c", RUN_SERVER, *arguments], environment, log_path)
                # On the CPU prompt log-probabilities kill an engine with LoRA (a shape error in its kernels).
                crashes = on_cpu and bool(settings.adapters)
                client = Client(f"http://127.0.0.1:{port}", MODEL_NAME, server, prompt_logprobs=not crashes)
                try:
                    client.wait_until_ready(mark, settings.start_timeout_seconds)
                except BaseException as error:
                    server.stop()
                    taken = isinstance(error, RuntimeError) and "address already in use" in str(error).lower()
                    if taken and attempt < PORT_ATTEMPTS:
                        continue
                    raise
            try:
                yield client
            finally:
                server.stop()
            return


def _use_server(url: str, settings: ServerSettings) -> Client:
    """Return a client of a user's server, after checking that it answers and has the adapters."""
    client = Client(url, "")
    try:
        models = client.models()
    except httpx.HTTPError as error:
        raise RuntimeError(f"no vLLM server answers at {url}: {error}") from error
    names = [str(model["id"]) for model in models if not model.get("parent")]
    missing = settings.adapters.keys() - {str(model["id"]) for model in models}
    if missing or not names:
        raise RuntimeError(f"the server at {url} offers no model or lacks the adapters {sorted(missing)}")
    return Client(url, names[0])


def _arguments(checkpoint: Path, settings: ServerSettings, port: int, mark: str, on_cpu: bool) -> list[str]:
    """Return the arguments of vLLM's API server."""
    options: dict[str, object] = {
        "model": checkpoint.absolute(),
        "host": "127.0.0.1",
        "port": port,
        "max-model-len": settings.maximum_model_length,
        "max-num-seqs": settings.maximum_sequences,
        "dtype": settings.dtype or ("float32" if on_cpu and not multiplies_bfloat16() else "auto"),
        "seed": settings.seed,
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    arguments += ["--served-model-name", MODEL_NAME, mark]
    # A cached prefix would make a result depend on what was asked before it.
    arguments += ["--no-enable-prefix-caching", "--disable-uvicorn-access-log"]
    if settings.trust_remote_code:
        arguments += ["--trust-remote-code"]
    if on_cpu:
        arguments += ["--enforce-eager"]  # torch.compile takes longer than most jobs' decoding
        # A GPU's memory is the job's own, and vLLM finds out how much of it is left.
        arguments += [f"--kv-cache-memory-bytes={int(settings.key_value_cache_gib * 2**30)}"]
    if settings.adapters:
        arguments += ["--enable-lora", f"--max-loras={len(settings.adapters)}"]
        arguments += [f"--max-lora-rank={_lora_rank(settings.adapters)}", "--lora-modules"]
        for name, folder in settings.adapters.items():
            arguments.append(json.dumps({"name": name, "path": str(folder.absolute())}))
    return [*arguments, *settings.extra_arguments]


def _lora_rank(adapters: Mapping[str, Path]) -> int:
    """Return the least rank that vLLM can be started with to serve all adapters."""
    rank = 1
    for name, folder in adapters.items():
        if name == MODEL_NAME:
            raise ValueError(f"an adapter cannot be named {MODEL_NAME!r}, as the checkpoint itself is")
        configuration = read_json(folder / "adapter_config.json")
        rank = max(rank, configuration["r"], *(configuration.get("rank_pattern") or {}).values())
    allowed = [value for value in LORA_RANKS if value >= rank]
    if not allowed:
        raise ValueError(f"vLLM serves LoRA adapters up to rank {LORA_RANKS[-1]}, not {rank}")
    return allowed[0]


def _environment(interpreter: str, settings: ServerSettings, on_cpu: bool) -> dict[str, str]:
    """Return the environment of the server's processes."""
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    environment |= dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"), "1")
    environment["PYTHONSAFEPATH"] = "1"  # the job's folder must not shadow the server's modules
    # Tools of the server's environment, such as ninja, are looked up on PATH.
    folder = Path(interpreter).absolute().parent
    environment["PATH"] = os.pathsep.join([str(folder), os.environ.get("PATH", os.defpath)])
    # By default in TMPDIR, which is each server's own, while compiled kernels are worth keeping.
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/aird-inductor-{os.getuid()}")
    if on_cpu:
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # saves the start of a third process
        # By itself vLLM pins its threads from core 0 on, so that all servers of a machine share it.
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # Else its first log-probabilities wait for a C++ compiler, 3 to 11 s.
        environment["TORCHDYNAMO_DISABLE"] = "1"
        # Threads that spin while they wait made a server six times slower beside other work.
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
        environment.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would win over --kv-cache-memory-bytes
    if settings.threads is not None:
        environment["OMP_NUM_THREADS"] = str(settings.threads)
    return environment


@contextlib.contextmanager
def _reserve_port() -> Iterator[int]:
    """Yield a port of 127.0.0.1 that nothing else gets; vLLM can, as it sets SO_REUSEADDR as well."""
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        yield int(reservation.getsockname()[1])


@contextlib.contextmanager
def _signals_as_exit() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into SystemExit, so that `finally` clauses run."""

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; the launcher still ends the server
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

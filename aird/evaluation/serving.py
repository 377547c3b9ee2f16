"""Run a vLLM server for as long as a job needs it.

The server is another Python environment's process, so this module imports neither
vLLM nor torch. Prompts go out as token ids: what is measured never depends on how
the server would have applied a chat template or added special tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NoReturn

import httpx

from aird.evaluation import vllm_server
from aird.evaluation.server_client import Client
from aird.evaluation.server_process import ServerProcess
from aird.support.files import read_json
from aird.support.gpus import VISIBLE, listed_gpus
from aird.support.processor import computes_in

MODEL_NAME = "checkpoint"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the ranks that vLLM's --max-lora-rank accepts
PORT_ATTEMPTS = 4
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY")  # of no use to it


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
        dtype: vLLM's --dtype; None takes the type that `load_model` computes in.
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


def detect_accelerator() -> Literal["cpu", "cuda"]:
    """Return "cuda" if nvidia-smi lists a GPU that CUDA_VISIBLE_DEVICES does not hide, else "cpu"."""
    hidden = os.environ.get(VISIBLE, "0").strip() in ("", "-1")
    return "cuda" if not hidden and listed_gpus() else "cpu"


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
                command = [interpreter, vllm_server.__file__, "cpu" if on_cpu else "cuda", *arguments]
                server = ServerProcess(command, environment, log_path)
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
        "dtype": settings.dtype or (_compute_dtype(checkpoint) if on_cpu else "auto"),
        "seed": settings.seed,
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    arguments += ["--served-model-name", MODEL_NAME, mark]
    # Prompts share a template's system prompt, and what is measured on one prompt shares all of it.
    arguments += ["--enable-prefix-caching", "--disable-uvicorn-access-log"]
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


def _compute_dtype(checkpoint: Path) -> str:
    """Return the type that a processor computes a checkpoint in (aird/support/processor.py), else "auto"."""
    config = read_json(checkpoint / "config.json")
    stored = config.get("dtype") or config.get("torch_dtype")
    return computes_in(str(stored)) if stored else "auto"


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

"""vLLM as an engine: an API server in another Python environment, for as long as a job needs it.

The workflow builds that environment (`rules/environments.smk`); this process never imports vLLM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from safetensors import safe_open

from aird.evaluation.engines.engine import (
    Abilities,
    AdapterRefused,
    Completion,
    Engine,
    ServerSettings,
    check_whole,
    finite,
    head_size,
)
from aird.evaluation.http_server import HttpServer, start_server
from aird.evaluation.programs import vllm_server
from aird.evaluation.server_process import clean_environment
from aird.settings.checkpoint_formats import experts_of
from aird.settings.compressions import CACHE_DTYPES
from aird.support.checkpoint_patterns import weight_files
from aird.support.files import read_json
from aird.support.gpus import VISIBLE, listed_gpus, spreading_obstacle
from aird.support.processor import computes_in, processor_flags

CHECKPOINT, ADAPTER = "checkpoint", "adapter"  # names under which the server knows them
HEAD, EXPERTS = "lm_head", "experts"  # modules of vLLM's
FLOAT32 = "float32"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the ranks that vLLM's --max-lora-rank accepts
# Set even where they are vLLM's defaults: a checkpoint's generation_config.json changes those.
NO_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
PROMPTS_PER_REQUEST = 32  # bounds the size of a body; vLLM batches across requests anyway


@dataclass(frozen=True)
class Vllm(Engine):
    """vLLM, started by a Python that has it; None means the Python of this process."""

    python: Path | None

    abilities: ClassVar = Abilities(first_token_logprobs=True, prompt_logprobs=True, tasks=True, adapters=True)
    key_value_cache_dtypes: ClassVar = CACHE_DTYPES["vllm"]

    @classmethod
    def recorded(cls, record: Mapping[str, Any], folder: Path) -> Vllm | None:
        """Return vLLM of the environment in `folder` that its record names."""
        if record["url"] is not None or "engine" in record:
            return None
        return cls(folder / record["python"])

    def describe(self) -> str:
        """Return which vLLM it is."""
        return f"vLLM ({self.python or sys.executable})"

    def able(self, checkpoint: Path) -> Abilities:
        """Return all, but for adapters beside some checkpoints.

        On a GPU these are float32 ones, which its LoRA kernels have not (vllm/lora/ops/triton_ops/lora_shrink_op.py).
        On a processor these are ones of eight-bit activations and mixtures of experts. Beside the former vLLM's kernel
        takes a layer's weights apart before the LoRA looks for them (vLLM 0.32 without AMX), and a patch is to be
        measured in one form on all machines. With any LoRA, experts run by Triton's kernels
        (vllm/model_executor/layers/fused_moe/oracle/unquantized.py), and the first request ends the engine.
        """
        from aird.models.dense import rounds_activations

        config = read_json(checkpoint / "config.json")
        if detect_accelerator() == "cuda":
            packed = "quantization_config" in config and not self.needs_dense_copy(checkpoint)
            return dataclasses.replace(self.abilities, adapters=packed or _stored_dtype(config) != FLOAT32)
        mixture = experts_of(config) is not None
        return dataclasses.replace(self.abilities, adapters=not (mixture or rounds_activations(checkpoint)))

    def needs_dense_copy(self, checkpoint: Path) -> bool:
        """Return whether vLLM cannot read a checkpoint's quantised weights on this machine."""
        from aird.models.dense import needs_dense_copy  # with torch, which a server's start does not wait for

        return needs_dense_copy(checkpoint, detect_accelerator() == "cpu")

    def check(self, checkpoint: Path, settings: ServerSettings) -> None:
        """Check the type of the cache, and that the attention heads can be dealt to the GPUs."""
        super().check(checkpoint, settings)
        config = read_json(checkpoint / "config.json")
        if detect_accelerator() == "cuda":
            if obstacle := spreading_obstacle(config, settings.gpus):
                raise ValueError(f"vLLM cannot serve {checkpoint}: {obstacle}; change `gpus` of the model")
        elif settings.key_value_cache_dtype is not None:
            _check_cpu_cache(config, settings.key_value_cache_dtype, processor_flags())

    @contextlib.contextmanager
    def serve(
        self, checkpoint: Path, settings: ServerSettings, log_path: Path, adapter: Path | None = None
    ) -> Iterator[VllmClient]:
        """Serve a checkpoint, with an adapter on it if one is given.

        Raises:
            AdapterRefused: vLLM has no LoRA for this model, this module or this rank.
            RuntimeError: the server did not start in time or ended; the message has the end of its log.
            ValueError: `python` is not an executable.
        """
        interpreter = shutil.which(str(self.python or sys.executable))
        if interpreter is None:
            raise ValueError(f"{self.python} is no executable Python interpreter")
        on_cpu = detect_accelerator() == "cpu"

        def command(port: int, mark: str) -> list[str]:
            arguments = _arguments(checkpoint, settings, adapter, port, mark, on_cpu)
            return [interpreter, vllm_server.__file__, "cpu" if on_cpu else "cuda", *arguments]

        seconds = settings.start_seconds(weight_files(checkpoint))
        environment = _environment(interpreter, settings, on_cpu, seconds)
        with contextlib.ExitStack() as stack:
            try:
                started = start_server("vLLM", command, environment, log_path, seconds)
                server = stack.enter_context(started)
            except RuntimeError as error:
                # Its errors about adapters all say so ("GPT2LMHeadModel does not support LoRA yet"); names of patches
                # and of vLLM's modules have no capitals.
                if adapter is not None and "LoRA" in str(error).partition("\n")[0]:
                    raise AdapterRefused(str(error)) from error
                raise
            yield VllmClient(server, CHECKPOINT if adapter is None else ADAPTER)


class VllmClient:
    """Asks one vLLM server by the completions interface, with vLLM's own extensions for token ids."""

    name = "vLLM"

    def __init__(self, server: HttpServer, model: str) -> None:
        """Take the server and the name of what is asked there."""
        self.server = server
        self.model = model

    def versions(self) -> dict[str, str]:
        """Return the server's vLLM version."""
        return {"vllm": str(self.server.get("/version")["version"])}

    def task_model(self) -> dict[str, Any]:
        """Return how lm-eval asks the same."""
        # Without any header lm-eval would send the key of another service, OPENAI_API_KEY.
        header = {"Accept": "application/json", **self.server.key_header()}
        return {"model": self.model, "base_url": f"{self.server.address}/v1/completions", "header": header}

    def complete(
        self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, *, logprobs: int | None = None
    ) -> list[Completion]:
        """Complete each prompt greedily (`Client.complete`)."""
        parameters: dict[str, Any] = {"max_tokens": maximum_new_tokens}
        if logprobs is not None:
            parameters |= {"logprobs": logprobs, "return_tokens_as_token_ids": True}
        completions = [_read_completion(choice) for choice in self._choices(prompts, parameters)]
        for prompt, made in zip(prompts, completions, strict=True):
            check_whole(self.name, made.finish_reason, made.token_count, maximum_new_tokens, len(prompt))
        return completions

    def token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """Return the log-probability (nats) of each prompt token (`Client.token_logprobs`)."""
        choices = self._choices(prompts, {"max_tokens": 1, "prompt_logprobs": 0})
        values: list[list[float | None]] = []
        for prompt, choice in zip(prompts, choices, strict=True):
            pairs = zip(prompt[1:], choice["prompt_logprobs"][1:], strict=True)
            values.append([None, *(finite(entry[str(token)]["logprob"]) for token, entry in pairs)])
        return values

    def _choices(self, prompts: Sequence[Sequence[int]], parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """Post all prompts to /v1/completions; return the choices in the order of `prompts`."""
        greedy = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "n": 1, "stream": False}
        common = {"model": self.model, "return_token_ids": True, **greedy, **NO_PENALTIES}
        bodies: list[dict[str, Any]] = []
        for start in range(0, len(prompts), PROMPTS_PER_REQUEST):
            batch = [list(prompt) for prompt in prompts[start : start + PROMPTS_PER_REQUEST]]
            bodies.append({**common, **parameters, "prompt": batch})
        try:
            answers = self.server.post_all("/v1/completions", bodies)
        except RuntimeError as error:
            if "not JSON compliant" in str(error):  # how the server's JSON encoder refuses NaN
                finite(math.nan)
            raise
        choices: list[dict[str, Any]] = []
        for body, answer in zip(bodies, answers, strict=True):
            if len(answer["choices"]) != len(body["prompt"]):
                raise RuntimeError("the server answered with another number of completions than prompts")
            choices.extend(sorted(answer["choices"], key=lambda choice: int(choice["index"])))
        return choices


def detect_accelerator() -> Literal["cpu", "cuda"]:
    """Return "cuda" if nvidia-smi lists a GPU that CUDA_VISIBLE_DEVICES does not hide, else "cpu"."""
    hidden = os.environ.get(VISIBLE, "0").strip() in ("", "-1")
    return "cuda" if not hidden and listed_gpus() else "cpu"


def _arguments(
    checkpoint: Path, settings: ServerSettings, adapter: Path | None, port: int, mark: str, on_cpu: bool
) -> list[str]:
    """Return the arguments of vLLM's API server."""
    options: dict[str, object] = {
        "model": checkpoint.absolute(),
        "host": "127.0.0.1",
        "port": port,
        "max-model-len": settings.maximum_model_length,
        "max-num-seqs": settings.maximum_sequences,
        "dtype": settings.dtype or _compute_dtype(checkpoint, on_cpu),
        "seed": settings.seed,
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    arguments += ["--served-model-name", CHECKPOINT, mark]
    # Prompts share a template's system prompt, and what is measured on one prompt shares all of it.
    arguments += ["--enable-prefix-caching", "--disable-uvicorn-access-log"]
    arguments += ["--generation-config=vllm"]  # lm-eval's tasks leave out what the checkpoint would put in
    if settings.trust_remote_code:
        arguments += ["--trust-remote-code"]
    if on_cpu:
        arguments += ["--enforce-eager"]  # torch.compile takes longer than most jobs' decoding
        # A GPU's memory is the job's own, and vLLM finds out how much of it is left.
        arguments += [f"--kv-cache-memory-bytes={int(settings.key_value_cache_gib * 2**30)}"]
    else:
        arguments += [f"--tensor-parallel-size={settings.gpus}"]
        if settings.gpu_memory_utilization is not None:
            arguments += [f"--gpu-memory-utilization={settings.gpu_memory_utilization}"]
    if settings.key_value_cache_dtype is not None:
        arguments += [f"--kv-cache-dtype={settings.key_value_cache_dtype}"]
    if adapter is not None:
        module = json.dumps({"name": ADAPTER, "path": str(adapter.absolute())})
        arguments += ["--enable-lora", f"--max-lora-rank={_lora_rank(adapter)}", "--lora-modules", module]
        # Other layers need no LoRA of zeros. With one on the head, prompt log-probabilities kill the engine on a CPU (a
        # shape error in its kernels).
        targets = _lora_targets(adapter)
        if on_cpu and HEAD in targets:
            raise AdapterRefused(f"vLLM on a CPU measures no adapter on {HEAD}, as {adapter} is")
        arguments += ["--lora-target-modules", *targets]
    return [*arguments, *settings.extra_arguments]


def _check_cpu_cache(config: Mapping[str, Any], dtype: str, flags: frozenset[str]) -> None:
    """Check what vLLM's attention on a CPU asks of a quantised cache (vLLM 0.32, `cpu_attn.py`)."""
    if not flags & {"avx512f", "amx_tile"}:
        raise ValueError(f"vLLM on a CPU has a key/value cache in {dtype} with AVX-512 or AMX only; use a GPU")
    width = head_size(config)
    if width % 32:
        raise ValueError(
            f"vLLM on a CPU has a key/value cache in {dtype} for heads of a multiple of 32 features only, and those of "
            f"this model have {width}; use a GPU"
        )


def _compute_dtype(checkpoint: Path, on_cpu: bool) -> str:
    """Return the type that a checkpoint is computed in, or "auto", which is its own unless that is float32.

    Of float32 "auto" makes a 16-bit type. Kernels for packed weights on a GPU have no other.
    """
    config = read_json(checkpoint / "config.json")
    stored = _stored_dtype(config)
    if stored and on_cpu:
        return computes_in(stored)
    return FLOAT32 if stored == FLOAT32 and "quantization_config" not in config else "auto"


def _stored_dtype(config: Mapping[str, Any]) -> str | None:
    stored = config.get("dtype") or config.get("torch_dtype")
    return str(stored) if stored else None


def _lora_rank(adapter: Path) -> int:
    """Return the least rank that vLLM can be started with to serve an adapter.

    Raises:
        AdapterRefused: the adapter's rank is above vLLM's.
    """
    configuration = read_json(adapter / "adapter_config.json")
    rank = max(configuration["r"], *(configuration.get("rank_pattern") or {}).values(), 1)
    allowed = [value for value in LORA_RANKS if value >= rank]
    if not allowed:
        raise AdapterRefused(f"vLLM serves LoRA adapters up to rank {LORA_RANKS[-1]}, not {rank}")
    return allowed[0]


def _lora_targets(adapter: Path) -> list[str]:
    """Return the last parts of the names of the modules that an adapter changes, as vLLM's option takes them.

    They are read from its tensors, as its configuration may hold a pattern. All experts of a block are one module.
    """
    with safe_open(adapter / "adapter_model.safetensors", "numpy") as reader:
        modules = {name.partition(".lora_")[0] for name in reader.keys()}  # noqa: SIM118 - it is no dictionary
    return sorted({EXPERTS if f".{EXPERTS}" in module else module.rpartition(".")[2] for module in modules})


def _environment(interpreter: str, settings: ServerSettings, on_cpu: bool, seconds: float) -> dict[str, str]:
    """Return the environment of the server's processes, which may take so many seconds to start."""
    environment = clean_environment()
    environment |= dict.fromkeys(("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"), "1")
    # Its API server waits for the engine's process by a limit of its own, by default 600 s.
    environment["VLLM_ENGINE_READY_TIMEOUT_S"] = str(math.ceil(seconds))
    # Tools of the server's environment, such as ninja, are looked up on PATH.
    folder = Path(interpreter).absolute().parent
    environment["PATH"] = os.pathsep.join([str(folder), os.environ.get("PATH", os.defpath)])
    # By default in TMPDIR, which is each server's own, while compiled kernels are worth keeping.
    if (kernels := _kernel_cache()) is not None:
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kernels))
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


def _kernel_cache() -> Path | None:
    """Return a folder for compiled kernels that this user alone can write, as they are run; None where none can be."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = (given if given.is_absolute() else Path.home() / ".cache") / "aird-inductor"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()  # a link is somebody else's folder, perhaps
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if private and os.access(folder, os.W_OK) else None


def _read_completion(choice: Mapping[str, Any]) -> Completion:
    first: dict[int, float] | None = None
    if choice["logprobs"] is not None:
        top = choice["logprobs"]["top_logprobs"][0]
        first = {int(name.removeprefix("token_id:")): finite(value) for name, value in top.items()}
    return Completion(choice["text"], tuple(choice["token_ids"]), choice["finish_reason"], first)

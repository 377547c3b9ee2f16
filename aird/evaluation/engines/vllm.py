"""vLLM as an engine: an API server in another Python environment, for as long as a job needs it.

This process never imports vLLM; `programs/vllm_server.py` starts it there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator

from aird.evaluation.engine import FIRST_TOKENS, Abilities, AdapterRefused, Engine, ServerSettings, head_size
from aird.evaluation.programs import vllm_server
from aird.evaluation.server_process import clean_environment
from aird.models.config_json import experts_of
from aird.settings.engines import EnvironmentSettings
from aird.support.checkpoint_patterns import weight_files
from aird.support.environments import Environment
from aird.support.files import own_folder, read_json, user_cache
from aird.support.gpus import VISIBLE, listed_gpus, spreading_obstacle
from aird.support.processor import computes_in, processor_flags

if TYPE_CHECKING:
    from aird.evaluation.vllm_client import VllmClient

CHECKPOINT, ADAPTER = "checkpoint", "adapter"  # names under which the server knows them
HEAD, EXPERTS = "lm_head", "experts"  # modules of vLLM's
FLOAT32 = "float32"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the ranks that vLLM's --max-lora-rank accepts
ServerArgument = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9]*([-_.][A-Za-z0-9]+)*$")]
_HERE = "decided by the workflow"
# Arguments of vLLM's server that the workflow sets itself or that would serve something else than is measured, and
# where that is said instead.
RESERVED_SERVER_ARGUMENTS = {
    **dict.fromkeys(
        "model-tag tokenizer tokenizer-mode host port uds root-path api-key ssl-keyfile ssl-certfile ssl-ca-certs "
        "served-model-name dtype runner convert task config headless enable-ssl-refresh skip-tokenizer-init "
        "generation-config override-generation-config logits-processors speculative-config quantization "
        "pipeline-parallel-size data-parallel-size nnodes node-rank revision code-revision".split(),
        _HERE,
    ),
    **dict.fromkeys("enable-lora max-lora-rank lora-modules max-loras lora-dtype".split(), "decided by the patch"),
    "model": "the checkpoint, by `models` and `compressions`",
    "max-logprobs": "what scores of first tokens need",
    "seed": "`seed`",
    "trust-remote-code": "`models.NAME.trust_remote_code`",
    "tensor-parallel-size": "`models.NAME.gpus`",
    "max-model-len": "`serving.maximum_model_length`",
    "gpu-memory-utilization": "`engines.vllm.gpu_memory_utilization`",
    "kv-cache-memory-bytes": "`engines.vllm.key_value_cache_gib`",
    "kv-cache-dtype": "`compressions.NAME.key_value_cache_dtype`, or `recipe: kv_cache`",
}


class VllmSettings(EnvironmentSettings):
    """How vLLM is started. Its own lock is for CUDA on GPUs and clusters, else for the CPU."""

    key_value_cache_gib: float = Field(1.0, gt=0, description="Key-value cache on a CPU, GiB.")
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Share of a GPU's memory; default: vLLM's own."
    )
    arguments: dict[ServerArgument, bool | int | float | str] = Field(
        {},
        description="Arguments of vLLM's server, such as `max-num-batched-tokens: 4096`; `true` and `false` switch "
        "one on and off.",
    )

    @property
    def memory_gib(self) -> float:
        """What the cache takes beyond its default."""
        return max(0.0, self.key_value_cache_gib - 1)

    @field_validator("arguments")
    @classmethod
    def _free(cls, arguments: dict[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
        names = {name: name.replace("_", "-").lower() for name in arguments}
        for name, written in names.items():
            whole = written.partition(".")[0].removeprefix("no-")
            # vLLM's parser takes the beginning of a name for the name.
            begun = [key for key in RESERVED_SERVER_ARGUMENTS if key.startswith(whole)]
            meant = whole if whole in begun else next(iter(begun), None)
            if meant is not None:
                raise ValueError(f"{name} sets {meant}, which is {RESERVED_SERVER_ARGUMENTS[meant]}; leave it out here")
            if [*names.values()].count(written) > 1:
                raise ValueError(f"{name} stands here twice; write it once")
        return arguments

    def server_arguments(self) -> list[str]:
        """Return `arguments` as vLLM's command line has them."""
        written = {name.replace("_", "-"): value for name, value in self.arguments.items()}
        switches = {True: "--{}", False: "--no-{}"}
        return [
            switches[value].format(name) if isinstance(value, bool) else f"--{name}={value}"
            for name, value in written.items()
        ]


@dataclass(frozen=True)
class Vllm(Engine):
    """vLLM, started by a Python that has it."""

    options: VllmSettings = field(default_factory=VllmSettings)

    title = "vLLM"
    settings = VllmSettings
    environment = Environment(
        name="vllm",
        lock="vllm-cpu.lock.txt",
        gpu_lock="vllm-cuda.lock.txt",
        modules=("torch", "transformers", "vllm"),
        packages=("vllm", "vllm-cpu", "torch", "transformers", "compressed-tensors"),
    )
    abilities = Abilities(first_token_logprobs=FIRST_TOKENS, prompt_logprobs=True, tasks=True, adapters=True)
    default = True
    key_value_cache_dtypes = ("fp8", "fp8_e5m2")
    seconds = 45.0
    option = "PYTHON"
    usage = "Python of an environment that holds vLLM"

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

    def spreading_obstacle(self, config: Mapping[str, Any], gpus: int) -> str | None:
        """Return why the attention heads cannot be dealt to so many GPUs; None if they can."""
        return spreading_obstacle(config, gpus)

    def check(self, checkpoint: Path, settings: ServerSettings) -> None:
        """Check the type of the cache, and that the attention heads can be dealt to the GPUs."""
        super().check(checkpoint, settings)
        config = read_json(checkpoint / "config.json")
        if detect_accelerator() == "cuda":
            if obstacle := self.spreading_obstacle(config, settings.gpus):
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
        from aird.evaluation.http_server import start_server
        from aird.evaluation.vllm_client import VllmClient

        interpreter = self.interpreter()
        on_cpu = detect_accelerator() == "cpu"

        def command(port: int, mark: str) -> list[str]:
            arguments = _arguments(self.options, checkpoint, settings, adapter, port, mark, on_cpu)
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


def detect_accelerator() -> Literal["cpu", "cuda"]:
    """Return "cuda" if nvidia-smi lists a GPU that CUDA_VISIBLE_DEVICES does not hide, else "cpu"."""
    hidden = os.environ.get(VISIBLE, "0").strip() in ("", "-1")
    return "cuda" if not hidden and listed_gpus() else "cpu"


def _arguments(
    options: VllmSettings,
    checkpoint: Path,
    settings: ServerSettings,
    adapter: Path | None,
    port: int,
    mark: str,
    on_cpu: bool,
) -> list[str]:
    """Return the arguments of vLLM's API server."""
    values: dict[str, object] = {
        "model": checkpoint.absolute(),
        "host": "127.0.0.1",
        "port": port,
        "max-model-len": settings.maximum_model_length,
        "max-logprobs": FIRST_TOKENS,
        "max-num-seqs": settings.maximum_sequences,
        "dtype": settings.dtype or _compute_dtype(checkpoint, on_cpu),
        "seed": settings.seed,
    }
    arguments = [f"--{name}={value}" for name, value in values.items()]
    arguments += ["--served-model-name", CHECKPOINT, mark]
    # Prompts share a template's system prompt, and what is measured on one prompt shares all of it.
    arguments += ["--enable-prefix-caching", "--disable-uvicorn-access-log"]
    arguments += ["--generation-config=vllm"]  # lm-eval's tasks leave out what the checkpoint would put in
    if settings.trust_remote_code:
        arguments += ["--trust-remote-code"]
    if on_cpu:
        arguments += ["--enforce-eager"]  # torch.compile takes longer than most jobs' decoding
        # A GPU's memory is the job's own, and vLLM finds out how much of it is left.
        arguments += [f"--kv-cache-memory-bytes={int(options.key_value_cache_gib * 2**30)}"]
    else:
        arguments += [f"--tensor-parallel-size={settings.gpus}"]
        if options.gpu_memory_utilization is not None:
            arguments += [f"--gpu-memory-utilization={options.gpu_memory_utilization}"]
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
    return [*arguments, *options.server_arguments()]


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
    from safetensors import safe_open

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
    try:
        folder = user_cache() / "aird-inductor"
        own_folder(folder)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None
    return folder


ENGINE = Vllm

"""What a configuration says about an evaluation suite: what one start of vLLM is asked."""

from __future__ import annotations

from functools import reduce
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator, model_validator

from aird.plugin import ATTACKS, JUDGES, OneOf
from aird.settings.attacks import RESERVED, AttackSettings
from aird.settings.base import EngineName, Name, PromptSelection, Settings, Text
from aird.settings.judges import JudgeSettings

# How a patched checkpoint is served.
ADAPTER, MERGED, BOTH = "adapter", "merged", "both"
SYSTEM_PROMPT = "system_prompt"  # of a patch that is one, whatever the suite says


class Suite(Settings):
    """Prompts and tasks that are served together, in one start of vLLM per checkpoint."""

    harmful: PromptSelection = Field(description="Instructions on which refusal and ASR are measured.")
    harmless: PromptSelection = Field(description="Instructions on which over-refusal and perplexity are measured.")
    maximum_new_tokens: int = Field(512, ge=1, description="Length limit of a completion, tokens.")
    think: bool = Field(
        False,
        description="Let models that think (`chat.thinking`) do so; default: they answer behind an empty thought.",
    )
    serve: Literal["adapter", "merged", "both"] = Field(
        "adapter",
        description="How a patched checkpoint is served: `adapter`, beside the compressed base, as it ships (merged "
        "where the engine takes none); `merged` into a checkpoint; `both`: as an adapter, and `summary.csv` says how "
        "far the merged checkpoint differs.",
    )
    perplexity_answers: int | None = Field(
        None, ge=1, description="Use only that many of the original's harmless answers for perplexity; default: all."
    )
    tasks: list[Text] = Field(
        [], description="lm-eval tasks for utility; a group stands for each of its tasks. Empty: none."
    )
    judge: Annotated[JudgeSettings, OneOf(JUDGES)] | None = Field(
        None, description="A model that judges the completions too."
    )
    judges: list[Text] = Field(
        [],
        description="Further judges that label each completion by its text: names of plug-ins (CONTRIBUTING.md).",
    )
    task_folder: Text | None = Field(None, description="Folder with lm-eval task files of your own.")
    task_limit: int | None = Field(None, ge=1, description="Use only that many documents of each task; default: all.")
    attacks: dict[Name, Annotated[AttackSettings, OneOf(ATTACKS)]] = Field(
        {}, description="Attacks by name: the harmful prompts are also asked as each of them changes them."
    )
    maximum_model_length: int | None = Field(
        None, ge=16, description="Longest prompt plus completion of this suite, tokens; default: that of `serving`."
    )

    @model_validator(mode="after")
    def _tasks(self) -> Suite:
        if not self.tasks and (self.task_folder is not None or self.task_limit is not None):
            raise ValueError(
                "`tasks` is missing, though task_folder or task_limit is given; name tasks, or leave those out"
            )
        return self

    @field_validator("judges")
    @classmethod
    def _label_texts(cls, judges: list[str]) -> list[str]:
        for name in judges:
            if JUDGES.load(name).settings is not None:
                raise ValueError(f"{name} is a model that is served; write it as the suite's `judge`")
        return judges

    @model_validator(mode="after")
    def _attacks(self) -> Suite:
        for name in RESERVED:
            if name in self.attacks:
                raise ValueError(f"attacks.{name}: tables use this name themselves; choose another")
        size = self.harmful.count
        for name, attack in self.attacks.items():
            if self.think and ATTACKS.of(attack).begins_answer:
                raise ValueError(
                    f"attacks.{name} decides how the answer begins, and `think: true` begins it with a thought; leave "
                    "one out"
                )
            if size is not None and attack.count is not None and attack.count > size:
                raise ValueError(f"attacks.{name}.count: the suite has {size} harmful prompts; write at most that")
        return self

    def asked(self) -> dict[str, Any]:
        """Return the settings that completions and utility depend on: all but the judges, which only read.

        How a patch is served matters to patched checkpoints only, so it is no part of them. A key that came later
        stands there only where it is set: an older suite keeps its results.
        """
        later = {name for name in ("attacks", "maximum_model_length") if not getattr(self, name)}
        return self.model_dump(exclude={"judge", "judges", "serve"} | later)


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
    "seed": "`seed`",
    "trust-remote-code": "`models.NAME.trust_remote_code`",
    "tensor-parallel-size": "`models.NAME.gpus`",
    "max-model-len": "`serving.maximum_model_length`",
    "gpu-memory-utilization": "`serving.gpu_memory_utilization`",
    "kv-cache-memory-bytes": "`serving.key_value_cache_gib`",
    "kv-cache-dtype": "`compressions.NAME.key_value_cache_dtype`, or `recipe: kv_cache`",
}


class Serving(Settings):
    """Who serves checkpoints, and how."""

    engine: EngineName | None = Field(
        None,
        description="Who serves every compression that names no engine of its own; default: llama.cpp a GGUF file, "
        "vLLM all others.",
    )
    executable: Text | None = Field(
        None, description="Python of an environment that holds vLLM; default: the workflow builds one."
    )
    llama_cpp_executable: Text | None = Field(
        None,
        description="Python of an environment that holds xllamacpp, such as one built for a GPU; default: the workflow "
        "builds one for the CPU.",
    )
    url: Text | None = Field(
        None,
        description="Address of running servers, vLLM or any with OpenAI's completions interface; starts none. "
        "`{model}`, `{compression}` and `{patch}` stand for names, and what follows a `#` is the model's name there, "
        "as in `http://localhost:8000#{compression}`; default: the first that it lists. VLLM_API_KEY is its key.",
    )
    urls: dict[Name, dict[Name, Text]] | None = Field(
        None, description="An address, as in `url`, for each model and each of its compressions, `original` included."
    )
    lock: Text | None = Field(
        None,
        description="Lock file of the environment to build; default: CUDA on GPUs and clusters, else CPU.",
    )
    maximum_model_length: int = Field(1024, ge=16, description="Longest prompt plus completion, tokens.")
    key_value_cache_gib: float = Field(1.0, gt=0, description="Key-value cache on a CPU, GiB.")
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Share of a GPU's memory that vLLM takes; default: vLLM's own."
    )
    arguments: dict[ServerArgument, bool | int | float | str] = Field(
        {},
        description="Further arguments of vLLM's server by their names, such as `max-num-batched-tokens: 4096`; "
        "`true` and `false` switch one on and off.",
    )
    parity_prompts: int = Field(8, ge=1, description="Prompts on which vLLM and Transformers must agree.")
    parity_tolerance: float = Field(
        0.25,
        gt=0,
        description="How far a first token's log-probability may differ on three quarters of these prompts, nats.",
    )

    def address(self, model: str, compression: str, patch: str) -> str | None:
        """Return the address of the running server of a checkpoint; None where there is none."""
        template = self.url if self.urls is None else self.urls.get(model, {}).get(compression)
        if template is None:
            return None
        names = {"model": model, "compression": compression, "patch": patch}
        return reduce(lambda text, name: text.replace(f"{{{name}}}", names[name]), names, template)

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: dict[str, dict[str, str]] | None) -> dict[str, dict[str, str]] | None:
        for model, of_model in (urls or {}).items():
            for compression, url in of_model.items():
                try:
                    cls._address(url)
                except ValueError as error:
                    raise ValueError(f"{url} of {model}/{compression} {error}") from error
        return urls

    @field_validator("url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        if url is None:
            return url
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            valid = False
        if not valid or any(character.isspace() for character in url):
            raise ValueError("is no address; write http:// or https:// and a host, as http://localhost:8000")
        if parts.username is not None or parts.query:
            # The address is written into results; a password must not be.
            raise ValueError("must be an address only; give the key as the environment's VLLM_API_KEY")
        if parts.path.rstrip("/").endswith("/v1"):
            raise ValueError("ends in /v1, which the workflow adds itself; leave it out")
        return url

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

    @model_validator(mode="after")
    def _one_server(self) -> Serving:
        exclusive = [("executable", "url", "urls", "lock"), ("engine", "url", "urls")]
        exclusive += [("llama_cpp_executable", "url", "urls")]
        for names in exclusive:
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} exclude each other; keep one of them")
        unused = [name for name in ("arguments", "gpu_memory_utilization") if getattr(self, name)]
        running = next((name for name in ("url", "urls") if getattr(self, name) is not None), None)
        if running and unused:
            raise ValueError(
                f"{' and '.join(unused)} cannot reach the server at `{running}`, which runs already; leave out one"
            )
        return self

    def server_arguments(self) -> tuple[str, ...]:
        """Return `arguments` as vLLM's command line has them."""
        written = {name.replace("_", "-"): value for name, value in self.arguments.items()}
        switches = {True: "--{}", False: "--no-{}"}
        return tuple(
            switches[value].format(name) if isinstance(value, bool) else f"--{name}={value}"
            for name, value in written.items()
        )

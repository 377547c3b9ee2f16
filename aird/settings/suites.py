"""What a configuration says about an evaluation suite: what one start of vLLM is asked."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator, model_validator

from aird.settings.base import Billions, PromptSelection, Settings, Text
from aird.settings.sources import ModelSource


class Classifier(Settings):
    """A classifier, served by vLLM, that says whether a completion is harmful; its rate is `asr_classifier`."""

    source: ModelSource = Field(description="The judge's model: a hub repository or a local folder.")
    template: Text | None = Field(
        None,
        description="What the judge is asked: text with `{instruction}` and then `{completion}`; default: the judge's "
        "own chat template of the conversation, as Llama Guard is asked.",
    )
    harmful: Text = Field("unsafe", description="How its answer begins where the completion is harmful.")
    harmless: Text = Field("safe", description="How its answer begins where it is not.")
    maximum_model_length: int = Field(2048, ge=16, description="Longest question to the judge plus its answer, tokens.")
    gpus: int = Field(1, ge=1, description="GPUs of each job that asks the judge.")
    parameters: Billions | None = Field(
        None, description="The judge's parameters in billions, as `models.NAME.parameters`."
    )

    @model_validator(mode="after")
    def _askable(self) -> Classifier:
        if self.source.wheel is not None:
            raise ValueError("a judge needs a model in Hugging Face format; give `hub` or the `path` of a folder")
        if self.template is not None:
            instruction, completion = (self.template.find(f"{{{name}}}") for name in ("instruction", "completion"))
            if not 0 <= instruction < completion:
                raise ValueError("`template` must hold {instruction} and, after it, {completion}")
        if self.harmful.lower() == self.harmless.lower():
            raise ValueError("`harmful` and `harmless` are the same word, so the answers would say nothing")
        return self


class Suite(Settings):
    """Prompts and tasks that are served together, in one start of vLLM per checkpoint."""

    harmful: PromptSelection = Field(description="Instructions on which refusal and ASR are measured.")
    harmless: PromptSelection = Field(description="Instructions on which over-refusal and perplexity are measured.")
    maximum_new_tokens: int = Field(512, ge=1, description="Length limit of a completion, tokens.")
    think: bool = Field(
        False,
        description="Let models that think (`chat.thinking`) do so; default: they answer behind an empty thought.",
    )
    perplexity_answers: int | None = Field(
        None, ge=1, description="Use only that many of the original's harmless answers for perplexity; default: all."
    )
    tasks: list[Text] = Field([], description="lm-eval tasks for utility; empty: none.")
    judge: Classifier | None = Field(None, description="A classifier that labels the harmful completions too.")
    task_folder: Text | None = Field(None, description="Folder with lm-eval task files of your own.")
    task_limit: int | None = Field(None, ge=1, description="Use only that many documents of each task; default: all.")

    @model_validator(mode="after")
    def _tasks(self) -> Suite:
        if not self.tasks and (self.task_folder is not None or self.task_limit is not None):
            raise ValueError(
                "`tasks` is missing, though task_folder or task_limit is given; name tasks, or leave those out"
            )
        return self


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
    "kv-cache-dtype": "a compression with `recipe: kv_cache`",
}


class Serving(Settings):
    """How vLLM is started."""

    executable: Text | None = Field(
        None, description="Python of an environment that holds vLLM; default: the workflow builds one."
    )
    url: Text | None = Field(
        None,
        description="Address of a running vLLM server that serves the checkpoint, such as "
        "`http://localhost:8000`; starts none. VLLM_API_KEY is its key.",
    )
    lock: Text | None = Field(
        None,
        description="Lock file of the environment to build; default: CUDA or CPU, by what the machine has.",
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
        if parts.username is not None or parts.query or parts.fragment:
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
        given = [name for name in ("executable", "url", "lock") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; keep one of them")
        unused = [name for name in ("arguments", "gpu_memory_utilization") if getattr(self, name)]
        if self.url is not None and unused:
            raise ValueError(
                f"{' and '.join(unused)} cannot reach the server at `url`, which runs already; leave out one"
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

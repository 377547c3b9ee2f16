"""What an engine is, and what it answers. The engines stand in `engines/`, one file each.

Prompts go out as token ids: what is measured never depends on how an engine would have applied a chat template or
added special tokens. Only a server of the user's that takes none is sent text, and the results say so.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Self

from aird.plugin import ENGINES
from aird.settings.engines import EngineSettings
from aird.settings.weights import WeightForm
from aird.support.environments import Environment, recorded_python

START_SECONDS = 600.0  # of a server that reads nothing
SLOWEST_READING = 50e6  # bytes a second of a file system that is waited for
FIRST_TOKENS = 500  # likeliest first tokens that an engine of ours is asked for: what is left is hardly ever said
# As vLLM and servers like it name them. Set even where they are defaults: a checkpoint's own settings change those.
NO_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclasses.dataclass(frozen=True)
class Completion:
    """One greedy completion.

    Attributes:
        text: the generated text without special tokens.
        token_ids: the generated tokens, an end-of-sequence token included.
        finish_reason: "stop" (an end-of-sequence token) or "length".
        first_token_logprobs: log-probabilities (nats) of the most likely first tokens by
            token id, or None if they were not asked for; empty where the engine does not tell them of this token.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    first_token_logprobs: dict[int, float] | None = None

    @property
    def token_count(self) -> int:
        """Number of generated tokens."""
        return len(self.token_ids)


def finite(logprob: float | None) -> float:
    """Return a log-probability that a server told.

    Raises:
        ValueError: it is NaN, or null, as JSON has no NaN.
    """
    if logprob is None or math.isnan(logprob):
        raise ValueError("the checkpoint returns NaN log-probabilities: its weights or activations overflow")
    return float(logprob)


def check_whole(name: str, finish_reason: str, made: int, asked: int, prompt: int) -> None:
    """Check that a server did not end an answer early: some take the tokens that are left where not all asked for fit.

    Args:
        name: what the error calls the server.
        finish_reason: why the answer ended, as of `Completion`.
        made: tokens of the answer.
        asked: the most that it was asked for.
        prompt: tokens of the prompt.

    Raises:
        RuntimeError: it did.
    """
    if finish_reason == "length" and made < asked:
        raise RuntimeError(
            f"{name} cut an answer after {made} of {asked} tokens, behind a prompt of {prompt} tokens; let the length "
            f"of the server be {prompt + asked} or more (maximum_model_length; vLLM's own is --max-model-len), and let "
            "it have no other limit for answers (vLLM: --generation-config=vllm)"
        )


def head_size(config: Mapping[str, Any]) -> int:
    """Return the features of an attention head, by a model's config.json."""
    text = config.get("text_config", config)
    return int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])


class Client(ABC):
    """Asks one checkpoint that an engine has ready, and the adapter on it, if there is one.

    Attributes:
        name: what results call who answers.
    """

    name: str

    @abstractmethod
    def complete(
        self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, *, logprobs: int | None = None
    ) -> list[Completion]:
        """Complete each prompt greedily.

        Args:
            prompts: token ids of each prompt, special tokens included.
            maximum_new_tokens: where to cut a completion.
            logprobs: how many of the first token's log-probabilities to return.

        Returns:
            One completion a prompt, in the order of `prompts`.

        Raises:
            RuntimeError: the server refused, failed or ended, or cut an answer early.
            ValueError: the checkpoint returns NaN (only seen with `logprobs`), or the engine tells none.
        """

    def token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """Return the log-probability (nats) of each prompt token given those before it.

        Args:
            prompts: token ids; shorter than the maximum model length, as a server generates one token.

        Returns:
            One row a prompt, None for its first token.

        Raises:
            RuntimeError, ValueError: as of `complete`.
        """
        raise ValueError(f"{self.name} tells no log-probabilities of given tokens")

    def task_model(self) -> dict[str, object]:
        """Return the arguments with which lm-eval's `local-completions` asks the same checkpoint.

        Raises:
            ValueError: it cannot.
        """
        raise ValueError(
            f"{self.name} cannot be asked lm-eval's tasks; choose an engine that can, or leave the tasks out"
        )

    def versions(self) -> dict[str, str]:
        """Return the versions of programs that are not this process's own."""
        return {}

    def once(self, name: str, asked: object, find: Callable[[], Any]) -> Any:
        """Return what is found by asking the same checkpoint in another way; a client that keeps answers keeps it.

        Args:
            name: what a user is told of what is asked.
            asked: all that the answer depends on besides the checkpoint and who runs it, as JSON.
            find: asks, and returns JSON.
        """
        return find()


# Returns a client around another one, and around the form in which that is served, which keeps answers as they come.
Keeping = Callable[[Client, str], Client]


class ClientAround(Client):
    """Asks through another client."""

    def __init__(self, client: Client) -> None:
        """Take the other client."""
        self.name = client.name
        self._client = client

    def complete(
        self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, *, logprobs: int | None = None
    ) -> list[Completion]:
        """Complete each prompt greedily (`Client.complete`)."""
        return self._client.complete(prompts, maximum_new_tokens, logprobs=logprobs)

    def token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """Return log-probabilities of prompt tokens (`Client.token_logprobs`)."""
        return self._client.token_logprobs(prompts)

    def task_model(self) -> dict[str, object]:
        """Return how lm-eval asks the same (`Client.task_model`)."""
        return self._client.task_model()

    def versions(self) -> dict[str, str]:
        """Return versions of programs (`Client.versions`)."""
        return self._client.versions()

    def once(self, name: str, asked: object, find: Callable[[], Any]) -> Any:
        """Return what is found in another way (`Client.once`)."""
        return self._client.once(name, asked, find)


@dataclasses.dataclass(frozen=True)
class Abilities:
    """What can be asked of an engine. What it cannot do is not measured with it.

    Attributes:
        first_token_logprobs: of how many of the likeliest first tokens it tells them, by token id; Transformers then
            checks that the checkpoint is loaded rightly. 0: of none.
        prompt_logprobs: of given tokens; the perplexity of given answers is made of these.
        tasks: lm-eval can ask it.
        adapters: all of this can be asked of a LoRA adapter on its base, unless it is refused (`AdapterRefused`); else
            the adapter is merged before.
        expert_adapters: of one on a mixture's experts too, as PEFT writes it (`target_parameters`).
        token_ids: it takes prompts as token ids; else they go out as text, which a tokenizer of its own reads.
        unpenalised: it decodes without a repetition penalty; else with its own, if it has one.
    """

    first_token_logprobs: int
    prompt_logprobs: bool
    tasks: bool
    adapters: bool
    expert_adapters: bool = False
    token_ids: bool = True
    unpenalised: bool = True


class AdapterRefused(RuntimeError):
    """An engine that takes adapters cannot put this one on this checkpoint."""


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """What a job asks of the engine that it starts; an engine that has no use for one leaves it out.

    Attributes:
        maximum_model_length: most tokens of a prompt and its completion together.
        maximum_sequences: most sequences in one batch.
        threads: OpenMP threads on the CPU; None leaves OMP_NUM_THREADS as it is.
        start_timeout_seconds: how long a server may take until it is healthy; None is as `start_seconds` says.
        dtype: type to compute in; None takes the type that `load_model` computes in.
        seed: the engine's own (greedy decoding does not depend on it).
        trust_remote_code: let the engine run modelling code that the checkpoint brings.
        gpus: GPUs to spread the model over; ignored without a GPU.
        key_value_cache_dtype: type of the cached keys and values, such as "fp8_e5m2"; None is the model's.
    """

    maximum_model_length: int
    maximum_sequences: int = 256
    threads: int | None = None
    start_timeout_seconds: float | None = None
    dtype: str | None = None
    seed: int = 0
    trust_remote_code: bool = False
    gpus: int = 1
    key_value_cache_dtype: str | None = None

    def start_seconds(self, weights: Iterable[Path]) -> float:
        """Return how long a server may take until it is healthy: the longer, the more it reads, if not said otherwise.

        Args:
            weights: the files that it reads.
        """
        if self.start_timeout_seconds is not None:
            return self.start_timeout_seconds
        return START_SECONDS + sum(path.stat().st_size for path in weights) / SLOWEST_READING


@dataclasses.dataclass(frozen=True)
class Engine(ABC):
    """A way to run checkpoints: a plug-in's file ends in `ENGINE =` and its own class.

    Attributes:
        python: of the environment that it runs in; None is this process's own.
        options: what the configuration says about it.
        title: its name for readers; records have it too.
        settings: the model of `options`.
        environment: where its server is installed, for an engine that is another program.
        abilities: what it can be asked for, at best.
        weights: what it computes with, as records say it: AS_STORED, the checkpoint's matrices; GGUF_FILE, the file
            that they were decoded from, and nothing else; None of a running server, which has what it was given.
        default: it serves checkpoints that hold its `weights`, where the configuration names no engine.
        is_reference: other engines are checked against it.
        key_value_cache_dtypes: types of a quantised key/value cache that it can be started with.
        seconds: until a small model is ready, for an estimate.
        option: of the commands, what stands behind `--NAME`, such as "PYTHON"; None where nothing does.
        usage: help of this option.
    """

    python: Path | None = None
    options: EngineSettings = dataclasses.field(default_factory=EngineSettings)

    title: ClassVar[str]
    settings: ClassVar[type[EngineSettings]] = EngineSettings
    environment: ClassVar[Environment | None] = None
    abilities: ClassVar[Abilities]
    weights: ClassVar[WeightForm | None] = WeightForm.AS_STORED
    default: ClassVar[bool] = False
    is_reference: ClassVar[bool] = False
    key_value_cache_dtypes: ClassVar[tuple[str, ...]] = ()
    seconds: ClassVar[float] = 10.0
    option: ClassVar[str | None] = None
    usage: ClassVar[str] = ""

    @classmethod
    def of_option(cls, value: str) -> Self:
        """Return the engine that a command's option names; `value` stands behind it, "" where nothing does.

        Raises:
            ValueError: it is none.
        """
        if value and not Path(value).is_file():
            raise ValueError(f"there is no file {value}")
        return cls(Path(value) if value else None)

    def describe(self) -> str:
        """Return what a user is told about who answers."""
        return self.title if self.environment is None else f"{self.title} ({self.python or sys.executable})"

    def interpreter(self) -> str:
        """Return the Python that starts the server.

        Raises:
            ValueError: it cannot be run.
        """
        found = shutil.which(str(self.python or sys.executable))
        if found is None:
            raise ValueError(f"{self.python} is no executable Python interpreter")
        return found

    def check_installed(self) -> None:
        """Check, without importing anything large, that its environment holds the package that it starts.

        Raises:
            ValueError: it does not.
        """
        if self.environment is None:
            return
        package = self.environment.modules[-1]
        probe = f"import importlib.util; raise SystemExit(importlib.util.find_spec({package!r}) is None)"
        if subprocess.run([self.interpreter(), "-c", probe], capture_output=True, check=False).returncode:
            raise ValueError(
                f"{self.describe()}: the package {package} is not installed there; pip install {package}, or name "
                "another Python that has it"
            )

    def able(self, checkpoint: Path) -> Abilities:
        """Return what it can really be asked for about a checkpoint; a server of the user's is asked to find out.

        Raises:
            RuntimeError: no server answers, or its answers cannot be used.
        """
        return self.abilities

    def split(self, model: Path, texts: Sequence[str], log_path: Path) -> list[list[int]]:
        """Return the token ids that an engine of files makes of texts by a file's own tokenizer; it adds no token.

        Special tokens that stand in a text count as such.

        Args:
            model: a file that the engine serves.
            texts: what is split.
            log_path: receives what a server prints.

        Raises:
            RuntimeError: the server did not start or failed.
        """
        raise NotImplementedError(f"{self.title} reads no tokenizer of a file")

    def needs_dense_copy(self, checkpoint: Path) -> bool:
        """Return whether the engine cannot read a checkpoint's quantised weights here, so that it gets them dense."""
        return False

    def spreading_obstacle(self, config: Mapping[str, Any], gpus: int) -> str | None:
        """Return why it cannot spread a model over so many GPUs, by the model's config.json; None if it can."""
        return None

    def check(self, checkpoint: Path, settings: ServerSettings) -> None:
        """Check that the engine can be started so, before anything is loaded for it.

        Raises:
            ValueError: it cannot; the message says why.
        """
        dtype = settings.key_value_cache_dtype
        if dtype is not None and dtype not in self.key_value_cache_dtypes:
            known = ", ".join(self.key_value_cache_dtypes) or "none"
            raise ValueError(
                f"{self.describe()} cannot be given a key/value cache of the type {dtype} (it has: {known})"
            )

    @abstractmethod
    def serve(
        self, checkpoint: Path, settings: ServerSettings, log_path: Path, adapter: Path | None = None
    ) -> AbstractContextManager[Client]:
        """Have a checkpoint ready to be asked while the context is open.

        Args:
            checkpoint: a folder with the model and its tokenizer.
            settings: how to start.
            log_path: receives what a started server prints; its folder is made.
            adapter: a PEFT LoRA adapter's folder, or a file in the engine's own format; it is put on the checkpoint.

        Raises:
            AdapterRefused: it cannot put the adapter on the checkpoint.
            RuntimeError: the engine did not start in time, ended, or does not answer.
            ValueError: it cannot be started so.
        """


def open_engine(name: str, options: Mapping[str, Any], environment: Path | None) -> Engine:
    """Return the engine of a job.

    Args:
        name: of the engine.
        options: its settings (`EngineSettings.asked`).
        environment: the record of its environment; None where it has none.

    Raises:
        FileNotFoundError: the environment is not there.
    """
    kind: type[Engine] = ENGINES.load(name)
    return kind(recorded_python(environment) if environment else None, kind.settings.model_validate(options))

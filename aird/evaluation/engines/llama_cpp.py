"""llama.cpp as an engine: its own HTTP server, on the GGUF file that a checkpoint was decoded from.

The server comes with xllamacpp, in another Python environment, which the workflow builds (`rules/environments.smk`).
It tells no log-probabilities of given tokens, so perplexity is not measured, nor are lm-eval's tasks that need them.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aird.evaluation.engine import (
    FIRST_TOKENS,
    Abilities,
    Client,
    Completion,
    Engine,
    ServerSettings,
    check_whole,
    finite,
    head_size,
)
from aird.evaluation.programs import llama_cpp_server
from aird.evaluation.server_process import clean_environment
from aird.settings.engines import EnvironmentSettings
from aird.settings.weights import WeightForm
from aird.support.environments import Environment
from aird.support.files import read_json

if TYPE_CHECKING:
    from aird.evaluation.http_server import HttpServer

NAME = "llama.cpp"  # in results
SEQUENCES = 8  # at once; each has memory for the longest prompt and completion
PROMPTS_PER_REQUEST = 32  # a request's prompts are answered side by side
# The server takes some ten at a time. Others wait in a short queue, and the kernel resets them after a minute.
CONNECTIONS = 4
SHORTEST = 256  # tokens of memory of a server that only splits texts
ENDED = {"eos": "stop", "limit": "length"}


class LlamaCppSettings(EnvironmentSettings):
    """How llama.cpp is started. Its own lock is for the CPU; an environment of yours may be built for a GPU."""


@dataclass(frozen=True)
class LlamaCpp(Engine):
    """llama.cpp's server, started by a Python that has xllamacpp."""

    title = "llama.cpp"
    settings = LlamaCppSettings
    environment = Environment(
        name="llama_cpp",
        lock="llama-cpp.lock.txt",
        modules=("xllamacpp",),
        packages=("xllamacpp",),
        memory_mb=1000,
        minutes=10,
    )
    abilities = Abilities(first_token_logprobs=FIRST_TOKENS, prompt_logprobs=False, tasks=False, adapters=True)
    weights = WeightForm.GGUF_FILE
    default = True
    key_value_cache_dtypes = ("q8_0", "q4_0")
    option = "PYTHON"
    usage = (
        "let llama.cpp serve GGUF files; without it, their decoded weights are measured. It comes with this package; "
        "PYTHON names another environment that holds xllamacpp, such as one built for a GPU"
    )

    def check(self, checkpoint: Path, settings: ServerSettings) -> None:
        """Check the type of the cache, whose blocks hold 32 features of a head."""
        super().check(checkpoint, settings)
        if settings.key_value_cache_dtype is None:
            return
        width = head_size(read_json(checkpoint / "config.json"))
        if width % 32:
            raise ValueError(
                f"{NAME} has a key/value cache in {settings.key_value_cache_dtype} for heads of a multiple of 32 "
                f"features only, and those of this model have {width}"
            )

    @contextlib.contextmanager
    def serve(
        self, checkpoint: Path, settings: ServerSettings, log_path: Path, adapter: Path | None = None
    ) -> Iterator[LlamaCppClient]:
        """Serve the GGUF file of a checkpoint, with a PEFT adapter on it if one is given.

        Raises:
            RuntimeError: the server did not start in time or ended; the message has the end of its log.
            ValueError: `python` is not an executable, the checkpoint has no GGUF file, or the adapter fits none.
        """
        from aird.models.gguf_file import read_gguf, served_gguf

        model = served_gguf(checkpoint)
        if model is None:
            raise ValueError(f"{checkpoint} holds no GGUF file, and {NAME} serves nothing else")
        options: dict[str, object] = {
            "model": model.absolute(),
            "length": settings.maximum_model_length,
            "sequences": min(SEQUENCES, settings.maximum_sequences),
            "threads": settings.threads or _threads(),
        }
        if settings.key_value_cache_dtype is not None:
            options["cache"] = settings.key_value_cache_dtype
        with contextlib.ExitStack() as stack:
            if adapter is not None:
                from aird.patching.gguf_adapter import write_gguf_adapter

                # As a GGUF file, the form in which people add it to the GGUF model that they run.
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aird-adapter-"))
                write_gguf_adapter(adapter, checkpoint, read_gguf(model), Path(folder, "adapter.gguf"))
                options["adapter"] = Path(folder, "adapter.gguf")
            server = stack.enter_context(self._started(options, log_path, settings.start_seconds([model])))
            yield LlamaCppClient(server)

    def split(self, model: Path, texts: Sequence[str], log_path: Path) -> list[list[int]]:
        """Return the token ids that llama.cpp makes of texts by the tokenizer of a GGUF file (`Engine.split`)."""
        settings = ServerSettings(maximum_model_length=SHORTEST)
        options = {"model": model.absolute(), "length": SHORTEST, "sequences": 1, "threads": _threads()}
        bodies = [{"content": text, "add_special": False, "parse_special": True} for text in texts]
        with self._started(options, log_path, settings.start_seconds([model])) as server:
            return [list(answer["tokens"]) for answer in server.post_all("/tokenize", bodies, CONNECTIONS)]

    def _started(
        self, options: Mapping[str, object], log_path: Path, seconds: float
    ) -> contextlib.AbstractContextManager[HttpServer]:
        from aird.evaluation.http_server import start_server

        interpreter = self.interpreter()
        fixed = [f"--{name}={value}" for name, value in options.items()]

        def command(port: int, mark: str) -> list[str]:
            return [interpreter, llama_cpp_server.__file__, *fixed, f"--port={port}", f"--mark={mark}"]

        return start_server(NAME, command, clean_environment(), log_path, seconds)


class LlamaCppClient(Client):
    """Asks one llama.cpp server by its own interface, which takes and gives token ids."""

    name = NAME

    def __init__(self, server: HttpServer) -> None:
        """Take the server."""
        self.server = server

    def versions(self) -> dict[str, str]:
        """Return the version of the package that the server comes with."""
        from aird.evaluation.http_server import listed_models

        (model,) = listed_models(self.server)
        return {"xllamacpp": str(model["tags"][0])}

    def complete(
        self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, *, logprobs: int | None = None
    ) -> list[Completion]:
        """Complete each prompt greedily (`Client.complete`)."""
        # Set even where they are the server's defaults. What one prompt left in the cache must not reach another.
        greedy = {"temperature": 0.0, "n_predict": maximum_new_tokens, "cache_prompt": False, "stream": False}
        # The file itself may ask for others. Of what llama.cpp has for choosing a token, only the temperature is left.
        neutral: dict[str, object] = {
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "dry_multiplier": 0.0,
        }
        neutral |= {"mirostat": 0, "samplers": ["temperature"]}
        common = {**greedy, **neutral, "n_probs": logprobs or 0, "return_tokens": True}
        batches = [
            prompts[start : start + PROMPTS_PER_REQUEST] for start in range(0, len(prompts), PROMPTS_PER_REQUEST)
        ]
        bodies = [{**common, "prompt": [list(prompt) for prompt in batch]} for batch in batches]
        completions: list[Completion] = []
        for batch, answer in zip(batches, self.server.post_all("/completion", bodies, CONNECTIONS), strict=True):
            # One prompt alone is answered without a list around it.
            rows = answer if isinstance(answer, list) else [answer]
            if len(rows) != len(batch):
                raise RuntimeError("the server answered with another number of completions than prompts")
            rows = sorted(rows, key=lambda row: int(row["index"]))
            for prompt, row in zip(batch, rows, strict=True):
                made = _read_completion(row, logprobs is not None)
                check_whole(NAME, made.finish_reason, made.token_count, maximum_new_tokens, len(prompt))
                completions.append(made)
        return completions


def _threads() -> int:
    """Return how many threads this job may use: OMP_NUM_THREADS, which Snakemake sets, else every core."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def _read_completion(row: Mapping[str, Any], with_logprobs: bool) -> Completion:
    first: dict[int, float] | None = None
    if with_logprobs:
        told = row.get("completion_probabilities", [])
        # A token that is a part of a character has none, and the list then begins with a later one.
        known = bool(told) and (not row["tokens"] or told[0]["id"] == row["tokens"][0])
        first = {int(top["id"]): finite(top["logprob"]) for top in told[0]["top_logprobs"]} if known else {}
    return Completion(row["content"], tuple(row["tokens"]), ENDED[row["stop_type"]], first)


ENGINE = LlamaCpp

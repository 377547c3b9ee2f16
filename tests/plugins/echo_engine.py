"""The smallest engine: it repeats the end of each prompt. `serving: {engine: echo_engine}` chooses it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from aird.evaluation.engine import Abilities, Client, Completion, Engine, ServerSettings
from aird.settings.engines import EngineSettings


class EchoSettings(EngineSettings):
    """What may stand at `engines.echo_engine`."""

    tokens: int = Field(8, ge=1, description="Tokens of an answer.")


@dataclass(frozen=True)
class Echo(Engine):
    options: EchoSettings = field(default_factory=EchoSettings)

    title = "an echo"
    settings = EchoSettings
    abilities = Abilities(first_token_logprobs=0, prompt_logprobs=False, tasks=False, adapters=False)

    @contextlib.contextmanager
    def serve(
        self, checkpoint: Path, settings: ServerSettings, log_path: Path, adapter: Path | None = None
    ) -> Iterator[Client]:
        yield EchoClient(checkpoint, self.options.tokens)


class EchoClient(Client):
    name = "echo"

    def __init__(self, checkpoint: Path, tokens: int) -> None:
        from aird.models.loading import load_tokenizer

        self.tokenizer, self.tokens = load_tokenizer(checkpoint), tokens

    def complete(
        self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, *, logprobs: int | None = None
    ) -> list[Completion]:
        answers = [list(prompt)[-min(self.tokens, maximum_new_tokens) :] for prompt in prompts]
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
        return [Completion(str(text), tuple(ids), "stop") for text, ids in zip(texts, answers, strict=True)]


ENGINE = Echo

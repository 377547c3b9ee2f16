"""Transformers as an engine, in this process: slower than a server, but nothing to install."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from aird.evaluation.engines.engine import Abilities, Completion, Engine, ServerSettings, finite
from aird.inference.generation import generate
from aird.models.loading import load_model, load_tokenizer


@dataclass(frozen=True)
class Transformers(Engine):
    """Transformers of this process; it has no environment of its own."""

    # Nothing checks its first tokens: other engines are checked against it.
    abilities: ClassVar = Abilities(
        first_token_logprobs=False, prompt_logprobs=True, tasks=False, adapters=True, expert_adapters=True
    )

    @classmethod
    def recorded(cls, record: Mapping[str, Any], folder: Path) -> None:
        """Return None: no environment's record is about it."""

    def describe(self) -> str:
        """Return its name."""
        return "Transformers"

    @contextlib.contextmanager
    def serve(
        self, checkpoint: Path, settings: ServerSettings, log_path: Path, adapter: Path | None = None
    ) -> Iterator[TransformersClient]:
        """Load a checkpoint and its adapter; settings and log are a server's."""
        yield TransformersClient(load_model(checkpoint, adapter), load_tokenizer(checkpoint))


class TransformersClient:
    """Asks one loaded model for completions and log-probabilities."""

    name = "Transformers"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Take a model in evaluation mode and its tokenizer."""
        self._model = model
        self._tokenizer = tokenizer

    def versions(self) -> dict[str, str]:
        """Return nothing: Transformers' version is this process's own."""
        return {}

    def task_model(self) -> dict[str, Any]:
        """Refuse: lm-eval asks a server."""
        raise ValueError("lm-eval's tasks need a server; choose vLLM, or leave the tasks out")

    def complete(
        self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, *, logprobs: int | None = None
    ) -> list[Completion]:
        """Complete each prompt greedily (`Client.complete`); `logprobs` must be None."""
        if logprobs is not None:
            raise ValueError("Transformers is asked for no candidates: it is what other engines are checked against")
        completions = []
        for ids in generate(self._model, self._tokenizer, prompts, maximum_new_tokens):
            text = self._tokenizer.decode(ids, skip_special_tokens=True)
            completions.append(Completion(text, tuple(ids), "length" if len(ids) == maximum_new_tokens else "stop"))
        return completions

    @torch.no_grad()
    def token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """Return the log-probability (nats) of each prompt token (`Client.token_logprobs`)."""
        device = next(self._model.parameters()).device
        rows: list[list[float | None]] = []
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=device)
            logprobs = self._model(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
            rows.append([None, *map(finite, logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist())])
        return rows

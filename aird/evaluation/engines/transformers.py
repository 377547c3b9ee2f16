"""Transformers as an engine, in this process: slower than a server, but nothing to install.

It is what other engines are checked against, by `aird.evaluation.measurements`, which loads models itself: this file
stands in no other engine's code record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aird.evaluation.engine import Abilities, Client, Completion, Engine, ServerSettings, finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Transformers(Engine):
    """Transformers of this process; it has no environment of its own."""

    title = "Transformers"
    abilities = Abilities(
        first_token_logprobs=False, prompt_logprobs=True, tasks=False, adapters=True, expert_adapters=True
    )
    is_reference = True
    usage = "let Transformers answer, and look for no server"

    @contextlib.contextmanager
    def serve(
        self, checkpoint: Path, settings: ServerSettings, log_path: Path, adapter: Path | None = None
    ) -> Iterator[TransformersClient]:
        """Load a checkpoint and its adapter; settings and log are a server's."""
        from aird.models.loading import load_model, load_tokenizer

        yield TransformersClient(load_model(checkpoint, adapter), load_tokenizer(checkpoint))


class TransformersClient(Client):
    """Asks one loaded model for completions and log-probabilities."""

    name = "Transformers"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take a model in evaluation mode and its tokenizer."""
        self._model = model
        self._tokenizer = tokenizer

    def complete(
        self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, *, logprobs: int | None = None
    ) -> list[Completion]:
        """Complete each prompt greedily (`Client.complete`); `logprobs` must be None."""
        from aird.inference.generation import generate

        if logprobs is not None:
            raise ValueError("Transformers is asked for no candidates: it is what other engines are checked against")
        completions = []
        for ids in generate(self._model, self._tokenizer, prompts, maximum_new_tokens):
            text = str(self._tokenizer.decode(ids, skip_special_tokens=True))
            completions.append(Completion(text, tuple(ids), "length" if len(ids) == maximum_new_tokens else "stop"))
        return completions

    def token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """Return the log-probability (nats) of each prompt token (`Client.token_logprobs`)."""
        import torch

        device = next(self._model.parameters()).device
        rows: list[list[float | None]] = []
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=device)
            with torch.no_grad():
                logprobs = self._model(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
            rows.append([None, *map(finite, logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist())])
        return rows


ENGINE = Transformers

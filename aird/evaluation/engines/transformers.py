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

from aird.evaluation.engine import FIRST_TOKENS, Abilities, Client, Completion, Engine, ServerSettings, finite

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Transformers(Engine):
    """Transformers of this process; it has no environment of its own."""

    title = "Transformers"
    abilities = Abilities(
        first_token_logprobs=FIRST_TOKENS, prompt_logprobs=True, tasks=False, adapters=True, expert_adapters=True
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
        """Complete each prompt greedily (`Client.complete`)."""
        from aird.inference.generation import generate

        first: dict[int, dict[int, float]] = {}

        def observe(rows: Sequence[int], token: int, logits: torch.Tensor) -> None:
            if token == 0 and logprobs is not None:
                values, ids = logits.double().log_softmax(-1).topk(min(logprobs, logits.shape[-1]))
                for row, *told in zip(rows, ids.tolist(), values.tolist(), strict=True):
                    first[row] = dict(zip(told[0], map(finite, told[1]), strict=True))

        made = generate(self._model, self._tokenizer, prompts, maximum_new_tokens, observe=observe)
        completions = []
        for row, ids in enumerate(made):
            text = str(self._tokenizer.decode(ids, skip_special_tokens=True))
            reason = "length" if len(ids) == maximum_new_tokens else "stop"
            completions.append(Completion(text, tuple(ids), reason, first.get(row)))
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

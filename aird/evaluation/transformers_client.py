"""Answers what a vLLM server answers, by Transformers in this process: slower, but nothing to install."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aird.evaluation.server_client import Completion
from aird.inference.generation import generate


class TransformersClient:
    """Asks one loaded model for completions and log-probabilities, as `Client` asks a server."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Take a model in evaluation mode and its tokenizer."""
        self._model = model
        self._tokenizer = tokenizer

    def complete(self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int) -> list[Completion]:
        """Complete each prompt greedily, in the order of `prompts`.

        Args:
            prompts: token ids of each prompt, special tokens included.
            maximum_new_tokens: where to cut a completion.
        """
        completions = []
        for ids in generate(self._model, self._tokenizer, prompts, maximum_new_tokens):
            text = self._tokenizer.decode(ids, skip_special_tokens=True)
            completions.append(Completion(text, tuple(ids), "length" if len(ids) == maximum_new_tokens else "stop"))
        return completions

    @torch.no_grad()
    def token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """Return the log-probability (nats) of each prompt token given those before it; None for the first."""
        device = next(self._model.parameters()).device
        answers: list[list[float | None]] = []
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=device)
            logprobs = self._model(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
            values = logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()
            if not all(value == value for value in values):
                raise ValueError("the checkpoint returns NaN log-probabilities: its weights or activations overflow")
            answers.append([None, *values])
        return answers

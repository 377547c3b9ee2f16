"""Greedy generation with Transformers, for the few nodes that need hooks or have no server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, batch_size: int = 64
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, without its end-of-text token.

    Prompts are sorted by length and left-padded, so that a batch pads little.

    Args:
        prompts: token ids, unpadded.
        maximum_new_tokens: limit of each continuation.
        batch_size: prompts per batch.
    """
    device = next(model.parameters()).device
    stop = model.generation_config.eos_token_id
    stops = set(stop if isinstance(stop, list) else [stop])
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(prompts[index]) for index in chosen)
        rows = [[padding] * (width - len(prompts[index])) + list(prompts[index]) for index in chosen]
        mask = [[0] * (width - len(prompts[index])) + [1] * len(prompts[index]) for index in chosen]
        output = model.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=maximum_new_tokens,
            do_sample=False,
            pad_token_id=padding,
            # Sampling defaults of the checkpoint would only cause warnings here.
            temperature=None,
            top_p=None,
            top_k=None,
        )
        for index, row in zip(chosen, output[:, width:].tolist(), strict=True):
            end = next((position for position, token in enumerate(row) if token in stops), len(row))
            results[index] = row[:end]
    return results

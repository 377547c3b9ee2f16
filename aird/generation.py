"""Greedy generation with Transformers, for the few nodes that need hooks or have no server."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from aird.chat import common_prefix_length


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    maximum_new_tokens: int,
    batch_size: int = 64,
    begin_suppress_tokens: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, without its end-of-text token.

    The template's shared start runs once and its keys and values are copied. The rest of the prompts
    is sorted by length and left-padded, so that a batch pads little.

    Args:
        prompts: token ids, unpadded.
        maximum_new_tokens: limit of each continuation.
        batch_size: prompts per batch.
        begin_suppress_tokens: tokens that a continuation must not begin with.
    """
    device = next(model.parameters()).device
    stop = model.generation_config.eos_token_id
    stops = set(stop if isinstance(stop, list) else [stop])
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops)
    shared = min(common_prefix_length(prompts), min(map(len, prompts)) - 1)
    prefix, cache = list(prompts[0][:shared]), _prefix_cache(model, prompts[0][:shared])
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(prompts[index]) for index in chosen)
        # Behind the shared start, so that every row's own cache entries are at the same places.
        gaps = [width - len(prompts[index]) for index in chosen]
        rows = [
            prefix + [padding] * gap + list(prompts[index][shared:]) for index, gap in zip(chosen, gaps, strict=True)
        ]
        mask = [[1] * shared + [0] * gap + [1] * (width - shared - gap) for gap in gaps]
        past: dict[str, Any] = {}
        if cache is not None:
            past["past_key_values"] = copy.deepcopy(cache)
            past["past_key_values"].batch_repeat_interleave(len(chosen))
        output = model.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=maximum_new_tokens,
            do_sample=False,
            pad_token_id=padding,
            begin_suppress_tokens=list(begin_suppress_tokens) if begin_suppress_tokens else None,
            **_only_last_logits(model),
            # Sampling defaults of the checkpoint would only cause warnings here.
            temperature=None,
            top_p=None,
            top_k=None,
            **past,
        )
        for index, row in zip(chosen, output[:, width:].tolist(), strict=True):
            end = next((position for position, token in enumerate(row) if token in stops), len(row))
            results[index] = row[:end]
    return results


def _only_last_logits(model: Any) -> dict[str, Any]:
    """Return the arguments that keep the last position's logits, as an index and not as a slice.

    Of a slice of several rows PyTorch multiplies each row with a copy of its own of the vocabulary's matrix:
    gigabytes, and half of the time of a short completion.
    """
    if not model._supports_logits_to_keep():
        return {}
    return {"logits_to_keep": torch.tensor([-1])}


def _prefix_cache(model: Any, prefix: Sequence[int]) -> Any:
    """Return the keys and values of the shared start, or None where a plain cache cannot hold them.

    A sliding window, or a state that is no list of keys and values, is not copied: such models run
    the whole prompts.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if not prefix:
        return None
    device = next(model.parameters()).device
    cache = model(input_ids=torch.tensor([list(prefix)], device=device), use_cache=True, logits_to_keep=1)
    cache = getattr(cache, "past_key_values", None)
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    return cache

"""Greedy generation with Transformers, for the few nodes that need hooks or have no server.

A checkpoint's own generation settings (sampling, penalties, forced or forbidden tokens) are not inherited, except for
the tokens that end a text: a reply is the same here and by a server, which is asked with neutral values too
(aird/evaluation/engines).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from aird.inference.cpu_attention import decoding_attention
from aird.inference.packing import PACK_TOKENS, Pack, honours_packs, make_packs, pack_output

# Called for every new token of a batch: which prompts its rows are, the token's number, logits [rows, vocabulary].
Observer = Callable[[Sequence[int], int, torch.Tensor], None]


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    maximum_new_tokens: int,
    batch_size: int = 64,
    begin_suppress_tokens: Sequence[int] | None = None,
    observe: Observer | None = None,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, without its end-of-text token.

    The prompts run in packs (aird/inference/packing.py), without padding and the template's shared start once; their
    keys and values are put into one left-padded cache, with which new tokens are made, one a prompt and pass.

    Args:
        prompts: token ids, unpadded.
        maximum_new_tokens: limit of each continuation.
        batch_size: prompts per batch.
        begin_suppress_tokens: tokens that a continuation must not begin with.
        observe: gets the logits of every new token, float32; also of rows whose continuation has ended.
    """
    device = next(model.parameters()).device
    stops = stop_tokens(model, tokenizer)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops, default=0)
    greedy = _with_settings(
        model,
        max_new_tokens=maximum_new_tokens,
        do_sample=False,
        eos_token_id=sorted(stops) or None,
        pad_token_id=padding,
        begin_suppress_tokens=list(begin_suppress_tokens) if begin_suppress_tokens else None,
    )
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: list[list[int]] = [[] for _ in prompts]
    cached = honours_packs(model, prompts)  # asked for the longest first, and so once
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [list(prompts[index]) for index in chosen]
        width = len(batch[-1])
        gaps = [width - len(prompt) for prompt in batch]
        rows = [[padding] * gap + prompt for gap, prompt in zip(gaps, batch, strict=True)]
        options = _only_last_logits(model)
        if observe is not None:
            options["logits_processor"] = [_Observed(observe, chosen, width)]
        cache = _prompt_cache(model, batch) if cached else None
        cached = cache is not None  # a model that gives none of one batch gives none of the next
        if cached:
            options["past_key_values"] = cache
        with decoding_attention(model):
            output = greedy.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps], device=device),
                generation_config=greedy.generation_config,
                **options,
            )
        for index, row in zip(chosen, output[:, width:].tolist(), strict=True):
            end = next((position for position, token in enumerate(row) if token in stops), len(row))
            results[index] = row[:end]
    return results


def stop_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end a text: those of the checkpoint's generation settings and the tokenizer's, as vLLM."""
    own = model.generation_config.eos_token_id
    tokens = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
    return {token for token in tokens if token is not None}


def _with_settings(model: Any, **settings: Any) -> Any:
    """Return the model with these generation settings and no others; the model itself keeps its own.

    Transformers fills whatever a call leaves open from the settings that stand on the model, also where it gets a
    whole `GenerationConfig`. So the call goes to a shallow copy, which shares every module and hook.
    """
    from transformers import GenerationConfig

    greedy = copy.copy(model)
    greedy.generation_config = GenerationConfig(**settings)
    return greedy


class _Observed:
    """A logits processor that changes nothing."""

    def __init__(self, observe: Observer, prompts: Sequence[int], width: int) -> None:
        self._observe, self._prompts, self._width = observe, prompts, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._observe(self._prompts, input_ids.shape[1] - self._width, scores)
        return scores


def _only_last_logits(model: Any) -> dict[str, Any]:
    """Return the arguments that keep the last position's logits, as an index and not as a slice.

    Of a slice of several rows PyTorch multiplies each row with a copy of its own of the vocabulary's matrix:
    gigabytes, and half of the time of a short completion.
    """
    if not model._supports_logits_to_keep():
        return {}
    return {"logits_to_keep": torch.tensor([-1])}


def _prompt_cache(model: Any, prompts: Sequence[Sequence[int]]) -> Any:
    """Return the keys and values of all but the last token of every prompt, left-padded; one row a prompt.

    None where packs or a plain cache cannot give them: a model that does not honour packs, a sliding window, a
    state that is no list of keys and values. Such models run the padded prompts.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if min(map(len, prompts)) < 2 or not honours_packs(model, prompts):
        return None
    width = max(map(len, prompts)) - 1
    parts: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
    for pack in make_packs([prompt[:-1] for prompt in prompts], PACK_TOKENS):
        kept = getattr(pack_output(model, pack, use_cache=True, logits_to_keep=1), "past_key_values", None)
        layers: list[Any] = kept.layers if type(kept) is DynamicCache else []
        if not layers or any(type(layer) is not DynamicLayer for layer in layers):
            return None
        places = _padded_places(pack, width)
        # [1, heads, tokens, width of a head] -> [prompts, heads, padded tokens, width of a head]
        parts.append([(_placed(layer.keys, places), _placed(layer.values, places)) for layer in layers])
    cache = DynamicCache()
    for index, pairs in enumerate(zip(*parts, strict=True)):
        keys, values = (torch.cat(each) for each in zip(*pairs, strict=True))
        cache.update(keys, values, index)
    return cache


def _padded_places(pack: Pack, width: int) -> torch.Tensor:
    """Return where each prompt's tokens stand in a pack, left-padded, [prompts, width] int64."""
    prefix = list(range(pack.prefix_length))
    places, start = [], pack.prefix_length
    for end in (pack.ends + 1).tolist():
        whole = prefix + list(range(start, end))
        places.append([0] * (width - len(whole)) + whole)
        start = end
    return torch.tensor(places)


def _placed(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    chosen = states[0].index_select(1, places.flatten().to(states.device))
    return chosen.unflatten(1, places.shape).transpose(0, 1)

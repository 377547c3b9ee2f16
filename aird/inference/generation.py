"""Greedy generation with Transformers, for the few nodes that need hooks or have no server.

A checkpoint's own generation settings (sampling, penalties, forced or forbidden tokens) are not inherited, except for
the tokens that end a text: a reply is the same here and by a server, which is asked with neutral values too
(aird/evaluation/engines).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from aird.inference.cpu_attention import decoding_attention
from aird.inference.packing import (
    PACK_TOKENS,
    Pack,
    honours_packs,
    logits_agree,
    make_packs,
    pack_output,
    run_pack,
)
from aird.support import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Called for every new token of a batch: which prompts its rows are, the token's number, logits [rows, vocabulary].
Observer = Callable[[Sequence[int], int, torch.Tensor], None]
# For as long as a model lives: (longest prompt, most padding, new tokens), and whether a batch of such was right.
_PADDING: WeakKeyDictionary[Any, list[tuple[tuple[int, int, int], bool]]] = WeakKeyDictionary()


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    maximum_new_tokens: int,
    batch_size: int = 64,
    begin_suppress_tokens: Sequence[int] | None = None,
    observe: Observer | None = None,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, without its end-of-text token.

    The prompts run in packs (aird/inference/packing.py), without padding and the template's shared start once; their
    keys and values are put into one left-padded cache, with which new tokens are made, one a prompt and pass. Where
    packs or a plain cache do not hold, the prompts run padded, and where the model has not proven that padding changes
    nothing (`honours_padding`), one by one.

    Args:
        prompts: token ids, unpadded.
        maximum_new_tokens: limit of each continuation.
        batch_size: prompts per batch.
        begin_suppress_tokens: tokens that a continuation must not begin with.
        observe: gets the logits of every new token, float32; also of rows whose continuation has ended.
    """
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
    if not honours_padding(model, prompts, maximum_new_tokens, padding):
        batch_size, cached = 1, False
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for chosen in progress.over(batches, "prompts", list(map(len, batches))):
        batch = [prompts[index] for index in chosen]
        cache = _prompt_cache(model, batch) if cached else None
        cached = cache is not None  # a model that gives none of one batch gives none of the next
        with progress.count("tokens", maximum_new_tokens) as tokens:
            observers = [lambda *_, made=tokens: made.add(), *([] if observe is None else [observe])]
            processors = [_Observed(each, chosen, len(batch[-1])) for each in observers]
            rows = _continue(greedy, batch, cache, processors).tolist()
        for index, row in zip(chosen, rows, strict=True):
            end = next((position for position, token in enumerate(row) if token in stops), len(row))
            results[index] = row[:end]
    return results


def _continue(greedy: Any, batch: Sequence[Sequence[int]], cache: Any, processors: list[Any]) -> torch.Tensor:
    """Return the new tokens of prompts that run side by side, left-padded, [prompts, new tokens] int64.

    Args:
        greedy: the model with the settings of the generation.
        batch: token ids, the longest last.
        cache: of `_prompt_cache`; None runs the padded prompts.
        processors: of the logits.
    """
    device = next(greedy.parameters()).device
    width, padding = len(batch[-1]), greedy.generation_config.pad_token_id
    gaps = [width - len(prompt) for prompt in batch]
    rows = [[padding] * gap + list(prompt) for gap, prompt in zip(gaps, batch, strict=True)]
    options: dict[str, Any] = {**_only_last_logits(greedy)}
    if processors:
        options["logits_processor"] = processors
    if cache is not None:
        options["past_key_values"] = cache
    with decoding_attention(greedy):
        output = greedy.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps], device=device),
            generation_config=greedy.generation_config,
            **options,
        )
    new: torch.Tensor = output[:, width:]
    return new


@torch.no_grad()
def honours_padding(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, padding: int
) -> bool:
    """Return whether this model continues these prompts side by side as it does one by one.

    It is proven on the longest and the shortest prompt, which get the most padding: the logits of two new tokens, one
    of them with the cache, are compared with those of the prompts alone, where the prompts end and where the
    continuations will. What is proven once holds for less. A state that passes over padding fails it.

    Args:
        model: a Transformers causal language model.
        prompts: token ids.
        maximum_new_tokens: as of `generate`.
        padding: the token that pads.

    Raises:
        ValueError: one by one it fails as well: with its cache the model computes something else than without.
    """
    if len(prompts) < 2:
        return True
    by_length = sorted(prompts, key=len)
    pair = by_length[0], by_length[-1]
    asked = len(pair[1]), len(pair[1]) - len(pair[0]), maximum_new_tokens
    known = _PADDING.setdefault(model, [])
    for proven, right in known:
        if all(ours <= theirs if right else ours >= theirs for ours, theirs in zip(asked, proven, strict=True)):
            return right
    longer = [list(islice(cycle(prompt), len(prompt) + maximum_new_tokens)) for prompt in pair]
    right = all(_cache_agrees(model, rows, padding) for rows in (pair, longer))
    if not right and not all(_cache_agrees(model, rows[1:], padding) for rows in (pair, longer)):
        raise ValueError(
            f"Transformers does not generate rightly with this {type(model).__name__}: with its cache, a prompt of "
            f"{len(pair[1])} tokens goes on otherwise than without, or not at all"
        )
    known.append((asked, right))
    if not right:
        logger.warning(
            "prompts of %d to %d tokens, padded to one length, do not give this model the logits of the prompts alone; "
            "they are continued one by one, which is slower",
            *map(len, pair),
        )
    return right


def _cache_agrees(model: PreTrainedModel, batch: Sequence[Sequence[int]], padding: int) -> bool:
    """Compare two new tokens of prompts side by side, the longest last, with a plain pass over each prompt alone."""
    greedy = _with_settings(model, max_new_tokens=2, do_sample=False, pad_token_id=padding)
    seen: list[torch.Tensor] = []
    observed = _Observed(lambda _, __, logits: seen.append(logits.clone()), range(len(batch)), len(batch[-1]))
    try:
        new = _continue(greedy, batch, _prompt_cache(model, batch), [observed])
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        logger.warning("a batch of %d prompts failed: %s", len(batch), error)
        return False
    for row, (prompt, tokens) in enumerate(zip(batch, new.tolist(), strict=True)):
        (pack,) = make_packs([[*prompt, tokens[0]]], 1)
        alone = run_pack(model, pack, logits_to_keep=2)[0, -2:].float()
        if not logits_agree(model, torch.stack([each[row] for each in seen]), alone):
            return False
    return True


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that end a text: those of the checkpoint's generation settings and the tokenizer's, as vLLM."""
    own = model.generation_config.eos_token_id
    tokens = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
    return {token for token in tokens if token is not None}


def _with_settings(model: PreTrainedModel, **settings: Any) -> Any:
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


def _only_last_logits(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the arguments that keep the last position's logits, as an index and not as a slice.

    Of a slice of several rows PyTorch multiplies each row with a copy of its own of the vocabulary's matrix:
    gigabytes, and half of the time of a short completion.
    """
    if not model._supports_logits_to_keep():  # type: ignore[operator]
        return {}
    return {"logits_to_keep": torch.tensor([-1])}


def _prompt_cache(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Any:
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
    placed: torch.Tensor = chosen.unflatten(1, places.shape).transpose(0, 1)
    return placed

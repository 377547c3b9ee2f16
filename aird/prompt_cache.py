"""Keys and values of tokens that have run in packs, one left-padded row a prompt, for what comes after them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from aird.packing import Pack

# One pair of each layer, [prompts, heads, padded tokens, width of a head].
KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]


def prompt_rows(output: Any, pack: Pack, width: int, first_layer: int = 0, left_out: int = 0) -> KeysAndValues | None:
    """Return the keys and values of a pack's prompts from a forward pass with `use_cache`.

    None where the model keeps anything but a plain list of keys and values (a sliding window, a state).

    Args:
        output: of the forward pass.
        pack: what was run.
        width: tokens of a row; prompts are padded on the left.
        first_layer: layers below are left out.
        left_out: so many last tokens of each prompt are left out.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    found = getattr(output, "past_key_values", None)
    layers: list[Any] = found.layers[first_layer:] if type(found) is DynamicCache else []
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return None
    places = padded_places(pack, width, left_out)
    return [(_placed(layer.keys, places), _placed(layer.values, places)) for layer in layers]


def as_cache(rows: Iterable[tuple[torch.Tensor, torch.Tensor]], first_layer: int = 0) -> Any:
    """Return rows as a cache of Transformers', which new tokens are added to; the rows stay as they are.

    Args:
        rows: a pair of each layer.
        first_layer: where they begin; the layers below stay empty.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    for index, (keys, values) in enumerate(rows, first_layer):
        cache.update(keys, values, index)
    return cache


def padded_places(pack: Pack, width: int, left_out: int = 0) -> torch.Tensor:
    """Return where each prompt's tokens stand in a pack, left-padded, [prompts, width] int64; -1 pads.

    Args:
        pack: the prompts.
        width: at least the tokens of the longest one.
        left_out: so many last tokens of each prompt are left out; they are its own, not of the shared prefix.
    """
    prefix = list(range(pack.prefix_length))
    places, start = [], pack.prefix_length
    for end in (pack.ends + 1).tolist():
        whole = prefix + list(range(start, end - left_out))
        places.append([-1] * (width - len(whole)) + whole)
        start = end
    return torch.tensor(places)


def _placed(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    # What pads is masked, so it may hold anything that is a number.
    chosen = states[0].index_select(1, places.clamp_min(0).flatten().to(states.device))
    # [heads, prompts, tokens, width of a head] -> prompts first
    return chosen.unflatten(1, places.shape).transpose(0, 1)

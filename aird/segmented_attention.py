"""Attention of a pack, prompt by prompt: no time for pairs of tokens that do not see each other.

A pack's mask hides prompts from one another, but a processor computes the hidden products all the same:
half of a pack's time at 512 tokens. Here the model's own attention function gets one prompt's queries
at a time, with the keys of the shared prefix and of that prompt. What is left out had weight zero.
On an accelerator the masked product is one launch and cheap, so there it stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch


@contextlib.contextmanager
def segmented_attention(model: Any, prefix_length: int, ends: Sequence[int]) -> Iterator[None]:
    """Let every attention of `model` over one pack run segment by segment.

    Args:
        model: a Transformers model; one whose attention is not looked up by name is left as it is.
        prefix_length: tokens at the start that all prompts see.
        ends: index of each prompt's last token; a prompt begins behind the one before it.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = model.config.get_text_config()._attn_implementation
    device = next(model.parameters()).device
    if device.type != "cpu" or len(ends) < 2 or name not in ALL_ATTENTION_FUNCTIONS:
        yield
        return
    plain = ALL_ATTENTION_FUNCTIONS[name]
    ALL_ATTENTION_FUNCTIONS[name] = _segmented(plain, prefix_length, ends)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[name] = plain


def _segmented(attend: Callable[..., Any], prefix_length: int, ends: Sequence[int]) -> Callable[..., Any]:
    starts = [prefix_length, *(end + 1 for end in ends[:-1])]
    segments = [slice(start, end + 1) for start, end in zip(starts, ends, strict=True)]
    prefix, tokens = slice(0, prefix_length), ends[-1] + 1

    def attention(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **settings: Any
    ) -> tuple[torch.Tensor, None]:
        packed = isinstance(mask, torch.Tensor) and mask.shape[-2:] == (tokens, tokens) == (
            query.shape[2],
            key.shape[2],
        )
        if not packed or settings.get("position_bias") is not None:
            output: tuple[torch.Tensor, None] = attend(module, query, key, value, mask, **settings)
            return output
        found = []
        if prefix_length:
            rows = mask[:, :, prefix, prefix]
            found.append(
                attend(module, query[:, :, prefix], key[:, :, prefix], value[:, :, prefix], rows, **settings)[0]
            )
        for own in segments:
            keys, values = (torch.cat([each[:, :, prefix], each[:, :, own]], dim=2) for each in (key, value))
            rows = torch.cat([mask[:, :, own, prefix], mask[:, :, own, own]], dim=3)
            found.append(attend(module, query[:, :, own], keys, values, rows, **settings)[0])
        return torch.cat(found, dim=1), None

    return attention

"""Attention on a CPU without the pairs of tokens that a mask hides, as batched matrix products.

PyTorch's own computes there every pair of tokens, also those that a pack's mask hides from each other, and
for single new tokens with a cache it takes ten times as long as two matrix products. Here every prompt of
a pack meets the keys of the shared prefix and its own only, prompts of like length together, and query heads
that share keys and values go into one product. What is left out had weight zero. On an accelerator the masked
product is one launch and cheap, so there it stays.

Transformers knows the function under a name of its own, `NAME`, which a model's configuration asks for from its
first pass here on and no checkpoint stores. How a pass attends is a context variable: each thread has its own, and
where none is set, the function is PyTorch's.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Attention = Callable[..., tuple[torch.Tensor, Any]]

# With "sdpa" inside, as Transformers then asks of a model what it asks for PyTorch's attention.
NAME = "aird_sdpa"
# How the passes of this thread attend; None is PyTorch's way.
_ATTENTION: ContextVar[Attention | None] = ContextVar("attention", default=None)
# What some models ask of an attention besides; PyTorch's takes the first and drops the others without a word.
EXTRAS = ("position_bias", "softcap", "s_aux")
# Prompts go together, padded to the longest of them, if they are at least this share of its length.
LEAST_FILLED = 0.7
HIDDEN = torch.finfo(torch.float32).min


def needed_attention(config: Any) -> str | None:
    """Return the attention to load a model with: "eager" where scores are capped; None leaves it to Transformers.

    PyTorch's attention would drop the cap (Gemma 2, VaultGemma). Of models with attention sinks (gpt-oss),
    Transformers itself takes the eager one.
    """
    return None if getattr(config.get_text_config(), "attn_logit_softcapping", None) is None else "eager"


@contextlib.contextmanager
def segmented_attention(model: PreTrainedModel, prefix_length: int, ends: Sequence[int]) -> Iterator[None]:
    """Let every attention of `model` over one pack run prompt by prompt.

    Args:
        model: a Transformers model; one whose attention is not PyTorch's is left as it is.
        prefix_length: tokens at the start that all prompts see.
        ends: index of each prompt's last token; a prompt begins behind the one before it.
    """
    with _attending(model, _of_pack(prefix_length, ends) if len(ends) > 1 else None):
        yield


@contextlib.contextmanager
def decoding_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let every attention of `model` with one new token a row run as two matrix products."""
    with _attending(model, _of_new_tokens):
        yield


@contextlib.contextmanager
def _attending(model: PreTrainedModel, attention: Attention | None) -> Iterator[None]:
    here = next(model.parameters()).device.type == "cpu"
    if here:
        _name_in(model)
    token = _ATTENTION.set(attention if here else None)
    try:
        yield
    finally:
        _ATTENTION.reset(token)


def _name_in(model: PreTrainedModel) -> None:
    """Let a model whose attention is PyTorch's ask for `NAME` instead, unless its code compares such names."""
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa":
        _register()
        if not any(_compares_names(module) for module in {type(each).__module__ for each in model.modules()}):
            config._attn_implementation = NAME


@functools.cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])


@functools.cache
def _compares_names(module: str) -> bool:
    """Tell whether a module's code asks if the attention is "sdpa", and would do something else under our name.

    Sparse attention (DeepSeek V3.2) puts its choice of keys into the mask only then.
    """
    try:
        code = inspect.getsource(sys.modules[module])
    except (OSError, TypeError):
        return True
    return re.search(r"""_attn_implementation (==|!=|in|not in) .*["']sdpa["']""", code) is not None


def _attention(*states: Any, **settings: Any) -> tuple[torch.Tensor, Any]:
    """Attend as this thread's pass does; arguments as Transformers gives them to an attention function."""
    return (_ATTENTION.get() or _plain)(*states, **settings)


def _plain(*states: Any, **settings: Any) -> tuple[torch.Tensor, Any]:
    from transformers import AttentionInterface

    attended: tuple[torch.Tensor, Any] = AttentionInterface()["sdpa"](*states, **settings)
    return attended


def grouped_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Return softmax(scaling q k^T + mask) v.

    Args:
        query: [n, heads, queries, width].
        key, value: [n, shared heads, keys, width]; each serves as many heads, in order.
        mask: [n, 1, queries, keys], boolean (true is seen) or additive; None shows all.
        scaling: of the scores.

    Returns:
        [n, heads, queries, width of the values], in the type of the values.
    """
    rows, heads, queries, width = query.shape
    shared = key.shape[1]
    grouped = query.reshape(rows, shared, -1, width)
    scores = (grouped @ key.transpose(2, 3)).view(rows, shared, heads // shared, queries, -1)
    exact = torch.promote_types(scores.dtype, torch.float32)
    seen = torch.zeros((), dtype=exact) if mask is None else _additive(mask).to(exact).unsqueeze(1)
    weights = torch.add(seen, scores, alpha=scaling).softmax(-1).to(value.dtype)
    return (weights.view(rows, shared, grouped.shape[2], -1) @ value).view(rows, heads, queries, -1)


def _additive(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, HIDDEN) if mask.dtype == torch.bool else mask


def _replaceable(mask: torch.Tensor | None, settings: Mapping[str, Any]) -> bool:
    """Tell whether `grouped_attention` computes what PyTorch's would: one mask for all heads, nothing else."""
    if settings.get("dropout") or any(settings.get(name) is not None for name in EXTRAS):
        return False
    return mask is None or mask.shape[1] == 1


def _scaling(query: torch.Tensor, settings: Mapping[str, Any]) -> float:
    scaling = settings.get("scaling")
    return query.shape[-1] ** -0.5 if scaling is None else float(scaling)


def _of_new_tokens(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **settings: Any
) -> tuple[torch.Tensor, Any]:
    if query.shape[2] > 1 or not _replaceable(mask, settings):
        return _plain(module, query, key, value, mask, **settings)
    return grouped_attention(query, key, value, mask, _scaling(query, settings)).transpose(1, 2), None


@dataclass(frozen=True)
class _Group:
    """Prompts of like length in the padded order: they begin at `start`, and each takes `length` places."""

    start: int
    prompts: int
    length: int

    @property
    def places(self) -> slice:
        return slice(self.start, self.start + self.prompts * self.length)


class _Layout:
    """A pack's tokens in padded order: the prefix, then, group by group, every prompt.

    Attributes:
        prefix_length: tokens of the prefix.
        groups: of the prompts.
        order: [places] int64, index in the pack; a place that pads holds the first token of its prompt.
        inverse: [tokens] int64, the place of each token of the pack.
        pads: [places] bool.
    """

    def __init__(self, prefix_length: int, ends: Sequence[int]) -> None:
        starts = [prefix_length, *(end + 1 for end in ends[:-1])]
        spans = sorted((range(start, end + 1) for start, end in zip(starts, ends, strict=True)), key=len, reverse=True)
        order, pads = list(range(prefix_length)), [False] * prefix_length
        self.prefix_length = prefix_length
        self.groups: list[_Group] = []
        while spans:
            length = len(spans[0])
            members = [span for span in spans if len(span) >= LEAST_FILLED * length]
            spans = spans[len(members) :]
            self.groups.append(_Group(len(order), len(members), length))
            for span in members:
                missing = length - len(span)
                order += [*span, *[span[0]] * missing]
                pads += [False] * len(span) + [True] * missing
        self.order, self.pads = torch.tensor(order), torch.tensor(pads)
        filled = (~self.pads).nonzero().squeeze(1)
        self.inverse = torch.empty_like(filled)
        self.inverse[self.order[filled]] = filled

    def masks(self, mask: torch.Tensor) -> list[torch.Tensor]:
        """Return what the tokens of each group see, [prompts, 1, length, prefix + length] additive float32.

        Args:
            mask: [tokens, tokens] of the pack, boolean or additive.
        """
        mask = _additive(mask).float()
        masks = []
        for group in self.groups:
            own, pads = (each[group.places].view(group.prompts, -1) for each in (self.order, self.pads))
            prefix = torch.arange(self.prefix_length).expand(group.prompts, -1)
            keys = torch.cat([prefix, own], dim=1)
            hidden = torch.cat([torch.zeros_like(prefix, dtype=torch.bool), pads], dim=1)
            seen = mask[own[:, :, None], keys[:, None, :]].masked_fill(hidden[:, None, :], HIDDEN)
            masks.append(seen.unsqueeze(1))
        return masks


class _Taken(torch.autograd.Function):
    """`states.index_select(axis, taken)`, whose gradient is such a selection too.

    PyTorch's own gradient adds up, one index after the other, which takes longer than the attention itself.
    """

    @staticmethod
    def forward(
        context: Any,
        states: torch.Tensor,
        axis: int,
        taken: torch.Tensor,
        back: torch.Tensor,
        unused: torch.Tensor | None,
    ) -> torch.Tensor:
        """Select; `back` is where each entry of `states` went, `unused` [entries] bool those that went nowhere."""
        context.axis, context.back, context.unused = axis, back, unused
        return states.index_select(axis, taken)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the states."""
        taken = gradient.index_select(context.axis, context.back)
        if context.unused is not None:
            taken.transpose(0, context.axis)[context.unused] = 0
        return taken, None, None, None, None


def _of_pack(prefix_length: int, ends: Sequence[int]) -> Attention:
    layout, tokens = _Layout(prefix_length, ends), ends[-1] + 1
    known: list[Any] = [None, []]  # the last mask, and what each group sees of it

    def attention(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **settings: Any
    ) -> tuple[torch.Tensor, Any]:
        packed = isinstance(mask, torch.Tensor) and mask.shape[-2:] == (query.shape[2], key.shape[2])
        if not packed or mask.shape[-1] != tokens or not _replaceable(mask, settings):
            return _plain(module, query, key, value, mask, **settings)
        if known[0] is not mask:  # one for all layers, or one for each kind of layer
            known[:] = mask, layout.masks(mask[0, 0])
        return _attend(layout, query, key, value, known, _scaling(query, settings)), None

    return attention


def _attend(
    layout: _Layout, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, known: Sequence[Any], scaling: float
) -> torch.Tensor:
    """Return [rows, tokens, heads, width], as Transformers wants it."""
    rows, prefix = len(query), layout.prefix_length
    query, key, value = (
        _Taken.apply(each, 2, layout.order, layout.inverse, None)  # type: ignore[no-untyped-call]
        for each in (query, key, value)
    )
    parts = []
    if prefix:
        first, seen = slice(0, prefix), known[0][:1, :, :prefix, :prefix]
        states = grouped_attention(query[:, :, first], key[:, :, first], value[:, :, first], seen, scaling)
        parts.append(states.transpose(1, 2))
    for group, seen in zip(layout.groups, known[1], strict=True):
        # [rows, heads, places, width] -> [rows x prompts, heads, length, width]
        queries, keys, values = (
            each[:, :, group.places].unflatten(2, (group.prompts, group.length)).transpose(1, 2)
            for each in (query, key, value)
        )
        keys, values = (
            torch.cat([whole[:, None, :, :prefix].expand(-1, group.prompts, -1, -1, -1), own], dim=3).flatten(0, 1)
            for whole, own in ((key, keys), (value, values))
        )
        states = grouped_attention(queries.flatten(0, 1), keys, values, seen.repeat(rows, 1, 1, 1), scaling)
        parts.append(states.unflatten(0, (rows, -1)).transpose(2, 3).flatten(1, 2))
    # What the places that pad got is left behind, and must have no gradient.
    taken: torch.Tensor = _Taken.apply(torch.cat(parts, dim=1), 1, layout.inverse, layout.order, layout.pads)  # type: ignore[no-untyped-call]
    return taken

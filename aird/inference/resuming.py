"""Run a part of a model: start at a block whose input is known, and stop where enough is known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import nn

from aird.inference.hooks import hooks, on_input
from aird.inference.packing import Pack, run_pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Blocks that return a tuple with the hidden states first; filled by what sees a block run before it is skipped.
TUPLE_BLOCKS: WeakSet[nn.Module] = WeakSet()


class Reached(Exception):
    """Ends a forward pass at the place whose value was wanted; raised by a hook, caught around the pass."""


@contextlib.contextmanager
def resumed_at(blocks: list[nn.Module], layer: int, states: torch.Tensor) -> Iterator[None]:
    """Skip the blocks below `layer` in every forward pass, and feed `states` to block `layer`.

    The skipped blocks stay in their places and pass their input on, so that whatever a model
    looks up by block index (rotary type, sliding window) still fits.

    Args:
        blocks: all decoder blocks.
        layer: the first block to compute.
        states: [rows, tokens, d_model], the input of that block.
    """
    # A loader that spreads a model over devices leaves a `forward` of its own on each block: put it back.
    own = [block.__dict__.get("forward") for block in blocks[:layer]]
    for block in blocks[:layer]:
        block.forward = _pass_on_in_tuple if block in TUPLE_BLOCKS else _pass_on
    try:
        with hooks(before=[(blocks[layer], on_input(lambda _: states))]):
            yield
    finally:
        for block, forward in zip(blocks[:layer], own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def _pass_on(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return hidden_states


def _pass_on_in_tuple(hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
    return hidden_states, None


def block_input(model: PreTrainedModel, blocks: list[nn.Module], pack: Pack, wanted: int) -> torch.Tensor:
    """Return the input of block `wanted`, [1, tokens, d_model]; the pass ends there.

    Inside `resumed_at` the pass begins where that says.
    """
    return block_inputs(model, blocks, pack, range(wanted, wanted + 1))[0]


def block_inputs(model: PreTrainedModel, blocks: list[nn.Module], pack: Pack, wanted: range) -> list[torch.Tensor]:
    """Return the inputs of a range of blocks, in its order, each [1, tokens, d_model]; the pass ends at the last."""
    kept: list[torch.Tensor] = []

    def note(block: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, tuple):
            TUPLE_BLOCKS.add(block)

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        kept.append(hidden)
        if len(kept) == len(wanted):
            raise Reached
        return hidden

    before = [(blocks[index], on_input(keep)) for index in wanted]
    with hooks(before, [(block, note) for block in blocks[: wanted.stop - 1]]), contextlib.suppress(Reached):
        run_pack(model, pack)
    return kept

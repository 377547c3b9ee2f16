"""Hooks on modules that are always removed, and the two interventions on the residual stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

Hook = Callable[..., Any]
Arguments = tuple[Any, ...]  # of a module's forward pass
Keywords = dict[str, Any]


@contextlib.contextmanager
def hooks(
    before: Iterable[tuple[nn.Module, Hook]] = (), forward: Iterable[tuple[nn.Module, Hook]] = ()
) -> Iterator[None]:
    """Register pre-forward hooks (with keyword arguments) and forward hooks; remove all on exit."""
    handles = []
    try:
        for module, hook in before:
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        for module, hook in forward:
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def on_input(change: Callable[[torch.Tensor], torch.Tensor]) -> Hook:
    """Return a pre-forward hook that replaces a block's hidden states x by change(x)."""

    def hook(_: nn.Module, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return hook


def on_output(change: Callable[[torch.Tensor], torch.Tensor]) -> Hook:
    """Return a forward hook that replaces a module's output tensor y by change(y)."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return hook


def remove_component(states: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Return x - (x . r) r, the states without their component along the unit direction r.

    Args:
        states: [rows, tokens, d_model]; a module may also return [rows x tokens, d_model].
        direction: [d_model], or [rows, d_model] for a direction of each row's own; unit norm.
    """
    unit = direction.to(states.device, states.dtype)
    if unit.ndim == 1:
        return states - (states @ unit).unsqueeze(-1) * unit
    rows = states.reshape(len(unit), -1, states.shape[-1])
    return (rows - torch.bmm(torch.bmm(rows, unit.unsqueeze(-1)), unit.unsqueeze(1))).view(states.shape)


@contextlib.contextmanager
def ablation(blocks: Iterable[nn.Module], writers: Iterable[nn.Module], direction: torch.Tensor) -> Iterator[None]:
    """Remove `direction` at the input of every block and from every writer's output, at all positions.

    Arditi et al., arXiv 2406.11717, equation 4 and `get_all_direction_ablation_hooks` of their code.
    """

    def change(states: torch.Tensor) -> torch.Tensor:
        return remove_component(states, direction)

    with hooks([(block, on_input(change)) for block in blocks], [(writer, on_output(change)) for writer in writers]):
        yield


@contextlib.contextmanager
def addition(block: nn.Module, vector: torch.Tensor) -> Iterator[None]:
    """Add `vector` at the input of one block, at all positions (arXiv 2406.11717, equation 3).

    Args:
        block: the decoder block at the direction's site.
        vector: [d_model], or [rows, d_model] for a vector of each row's own; the raw difference
            in means, not normalised.
    """

    def change(states: torch.Tensor) -> torch.Tensor:
        added = vector.to(states.device, states.dtype)
        return states + (added if added.ndim == 1 else added.unsqueeze(1))

    with hooks([(block, on_input(change))]):
        yield

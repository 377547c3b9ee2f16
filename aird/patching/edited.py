"""A model with edits in place, whose weights stay as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from aird.inference.hooks import Hook, hooks
from aird.models.block_proof import edited_experts
from aird.patching.edits import Edit

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def edited(model: PreTrainedModel, edits: Iterable[Edit]) -> Iterator[None]:
    """Add edits to the outputs of their modules, or to the matrices of experts, while the context is open."""
    with contextlib.ExitStack() as active:
        for edit in edits:
            if edit.of_experts:
                active.enter_context(edited_experts(model, edit.module, edit.up, edit.down))
            else:
                active.enter_context(hooks(forward=[(model.get_submodule(edit.module), _adding(edit))]))
        yield


def _adding(edit: Edit) -> Hook:
    """Return a forward hook that adds what an edit writes."""

    def add(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        up, down = (factor.to(output.device, output.dtype) for factor in (edit.up, edit.down))
        read = inputs[0] @ down.T
        # A single column gets its gradient elementwise: a matrix product would round it in another order.
        return output + (read * up.T if edit.rank == 1 else read @ up.T)

    return add

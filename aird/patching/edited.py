"""A model with edits in place, whose weights stay as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from aird.inference.hooks import hooks
from aird.models.structure import edited_experts
from aird.patching.edits import Edit, Update


@contextlib.contextmanager
def edited(module: nn.Module, edit: Edit | Update) -> Iterator[None]:
    """Add an edit to a module's output while the context is open; its weights stay as they are."""

    def add(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if isinstance(edit, Edit):
            row, column = (vector.to(output.device, output.dtype) for vector in (edit.row, edit.column))
            return output + (inputs[0] @ row).unsqueeze(-1) * column
        down, up = (matrix.to(output.device, output.dtype) for matrix in (edit.down, edit.up))
        return output + inputs[0] @ down.T @ up.T

    with hooks(forward=[(module, add)]):
        yield


@contextlib.contextmanager
def all_edited(model: Any, edits: Sequence[Edit | Update]) -> Iterator[None]:
    """Add edits to the outputs of their modules, or to the matrices of experts, while the context is open."""
    with contextlib.ExitStack() as active:
        for edit in edits:
            if isinstance(edit, Edit) and edit.row.ndim == 2:
                active.enter_context(edited_experts(model, edit.module, edit.column, edit.row))
            else:
                active.enter_context(edited(model.get_submodule(edit.module), edit))
        yield


def scaled(edit: Edit | Update, strength: float) -> Any:
    """Return an edit of another strength, of the same kind."""
    if isinstance(edit, Edit):
        return replace(edit, row=strength * edit.row)
    return replace(edit, down=strength * edit.down)

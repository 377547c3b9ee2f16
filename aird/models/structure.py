"""Find the decoder blocks of a model and what they add to its residual stream, and prove it on the model itself.

Nothing is recognised by name. A block adds *contributions* to its input: the output of a module, times a constant
where the model has one. They are read from the operations of one short forward pass, so a norm behind the last matrix,
attention and MLP side by side, a mixture of experts or a state space are all seen for what they are:

    block output = block input + sum of scale x (output of a module)

Where the model has weights, this is then proven by values: hooks on these very modules, on a few tokens, must give
every block's output. Whoever removes a direction from these outputs, or adds to them, works on all that is written.

An edit changes the matrix of a *writer*, the linear module that a contribution comes from. Where a norm with the gain
g follows, the contribution is g * y / rms(y) of the writer's output y (Gemma 2 and 3, OLMo 2, EXAONE 4), and the edit
allows for it (aird/patching/edits.py). A mixture's experts write with one matrix each, the slices of one parameter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn

from aird.models.block_proof import norm_gain, prove_experts, prove_writers, with_proven_norms, written_size
from aird.models.block_reading import Reading
from aird.models.blocks import Contribution, Writers, blocks_are_empty, decoder_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROVEN: WeakKeyDictionary[nn.Module, list[Writers]] = WeakKeyDictionary()


@torch.no_grad()
def residual_writers(model: PreTrainedModel) -> list[Writers]:
    """Return what every block writes to the residual stream, proven where the model has weights; once per model.

    A model without weights (`aird.models.loading.load_structure`) runs the same operations and is read in the same way,
    so it is known from the operations alone; its values were compared when it was imported.

    Raises:
        ArchitectureError: a block's output is not its input plus outputs of modules; the message names the block, how
            far off it is and what was seen.
    """
    if model not in _PROVEN:
        blocks = list(decoder_blocks(model))
        writers = Reading(model, blocks).run()
        if not blocks_are_empty(blocks):
            prove_writers(model, blocks, writers)
            prove_experts(model, writers)
            writers = [with_proven_norms(model, block) for block in writers]
        _PROVEN[model] = writers
    return _PROVEN[model]


def writer_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules whose outputs are the contributions, block by block: where a direction is removed."""
    modules = dict(model.named_modules())
    names = [each.module for block in residual_writers(model) for each in block.contributions]
    return [modules[name] for name in dict.fromkeys(names)]


def writer_contributions(model: PreTrainedModel) -> dict[str, Contribution]:
    """Return the contribution of every linear module that can be edited."""
    return {each.writer: each for block in residual_writers(model) for each in block.contributions if each.writer}


def writer_gains(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the gain of the norm behind each writer that has one, writer -> [d_model] float64, on the CPU.

    Raises:
        ArchitectureError: as of `norm_gain`.
    """
    return {
        writer: norm_gain(each.norm, model.get_submodule(each.norm), written_size(model, writer))
        for writer, each in writer_contributions(model).items()
        if each.norm is not None
    }

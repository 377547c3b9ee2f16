"""The decoder blocks of a model, and what may be said of each: what it adds to the residual stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from aird.inference.hooks import Keywords

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 8  # of the pass that proves a structure
# Where PEFT puts no LoRA on modules of this name (peft/tuners/tuners_utils.py): kernels read their weight past it.
WITHOUT_ADAPTERS = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
STATE_SPACE_WRITER = "out_proj"


class ArchitectureError(ValueError):
    """The model lacks the structure that directions and AIRD need."""


@dataclass(frozen=True)
class Contribution:
    """One thing that a block adds to the residual stream: `scale` times the output of `module`.

    Attributes:
        part: the child of the block that it comes from, in the model's own words, such as "self_attn".
        module: full name of the module; ablation and addition work at its output.
        scale: a constant of the model, such as a residual multiplier; 1 in most.
        writer: full name of the linear module whose matrix can be edited; None where there is none.
        norm: full name of the norm between writer and residual stream, then the same as `module`; None without one.
        experts: full name of the parameter that holds the output matrices of a mixture's experts; None elsewhere.
        obstacle: what no edit reaches and why, with the module's name; empty where a writer or experts are all of it.
    """

    part: str
    module: str
    scale: float = 1.0
    writer: str | None = None
    norm: str | None = None
    experts: str | None = None
    obstacle: str = ""


@dataclass(frozen=True)
class Writers:
    """What one block writes to the residual stream, in the order of the forward pass.

    Attributes:
        block: full name of the block.
        contributions: all of it.
    """

    block: str
    contributions: tuple[Contribution, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of the linear modules whose matrices can be edited; in most models attention first."""
        return tuple(each.writer for each in self.contributions if each.writer is not None)

    @property
    def experts(self) -> tuple[str, ...]:
        """Full names of the parameters with experts' output matrices, which can be edited as well."""
        return tuple(each.experts for each in self.contributions if each.experts is not None)

    @property
    def obstacles(self) -> list[str]:
        """What this block writes and no edit reaches, with the reason; empty for most models."""
        return [each.obstacle for each in self.contributions if each.obstacle]


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder blocks: the module list with `num_hidden_layers` entries, first looked for in the text model.

    Raises:
        ArchitectureError: no module list has that length.
    """
    wanted = model.config.get_text_config().num_hidden_layers
    text: nn.Module = getattr(model, "get_decoder", lambda: model)()
    lengths = {}
    for root in (text, model):
        for name, module in root.named_modules():
            if isinstance(module, nn.ModuleList):
                lengths[name] = len(module)
                if len(module) == wanted:
                    return module
    raise ArchitectureError(
        f"{type(model).__name__}: looked for a module list of {wanted} decoder blocks, found {lengths or 'none'}"
    )


def outside_blocks(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear modules outside the decoder blocks, such as the output head."""
    inside = {id(module) for block in decoder_blocks(model) for module in block.modules()}
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name, module in linear if id(module) not in inside]


def takes_adapter(model: PreTrainedModel, module: str) -> bool:
    """Return whether PEFT puts an adapter on a linear module of this full name."""
    return model.config.model_type not in WITHOUT_ADAPTERS or module.rpartition(".")[2] != STATE_SPACE_WRITER


def blocks_are_empty(blocks: Iterable[nn.Module]) -> bool:
    """Return whether the blocks have no weights (meta device)."""
    return any(parameter.is_meta for block in blocks for parameter in block.parameters())


def some_tokens(model: PreTrainedModel) -> Keywords:
    """Return the keyword arguments of a short forward pass."""
    # Neither the first ids, which pad and begin, nor the last, which are often markers of images.
    ids = torch.arange(3, 3 + TOKENS) % model.get_input_embeddings().get_parameter("weight").shape[0]
    return {"input_ids": ids[None].to(next(model.parameters()).device), "use_cache": False}

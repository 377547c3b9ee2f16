"""Find the decoder blocks of a model and the modules that write to its residual stream.

Architectures are recognised by structure, never by name: blocks are the module
list with one entry per hidden layer; the writers of a block are the two linear
modules whose output *is* the output of the attention and of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aird.inference.hooks import hooks


class ArchitectureError(ValueError):
    """The model lacks the structure that directions and AIRD need."""


@dataclass(frozen=True)
class Writers:
    """Full names of the two linear modules of one block that write to the residual stream."""

    attention: str
    mlp: str

    @property
    def names(self) -> tuple[str, str]:
        """Both names, attention first."""
        return (self.attention, self.mlp)


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks: the module list with `num_hidden_layers` entries.

    Raises:
        ArchitectureError: no module list has that length.
    """
    config: Any = model.config
    wanted = config.get_text_config().num_hidden_layers
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            found[name] = len(module)
            if len(module) == wanted:
                return module
    raise ArchitectureError(
        f"{type(model).__name__}: looked for a module list of {wanted} decoder blocks, found {found or 'none'}"
    )


def outside_blocks(model: nn.Module) -> list[str]:
    """Return the names of the linear modules outside the decoder blocks, such as the output head."""
    inside = {id(module) for block in decoder_blocks(model) for module in block.modules()}
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name, module in linear if id(module) not in inside]


@torch.no_grad()
def residual_writers(model: nn.Module) -> list[Writers]:
    """Return the residual-stream writers of every block, found by one forward pass of one token.

    Raises:
        ArchitectureError: a block does not end its attention and its MLP in one linear module
            each (mixtures of experts, fused blocks); the message names the block.
    """
    names = {module: name for name, module in model.named_modules()}
    blocks = list(decoder_blocks(model))
    finals: dict[nn.Module, list[str]] = {block: [] for block in blocks}
    made: list[tuple[str, torch.Tensor]] = []

    def remember(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        made.append((names[module], output))

    def match(block: nn.Module) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            final = finals[block]
            final.extend(name for name, linear in made if linear is tensor and name not in final)

        return hook

    linears = [module for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]
    children = [(child, match(block)) for block in blocks for child in block.children()]
    # `remember` is registered first, so that it runs before `match` where a block's child is itself linear.
    with hooks(forward=[(module, remember) for module in linears] + children):
        _run_one_token(model)
    return [_writers(names[block], block, final) for block, final in finals.items()]


def writer_modules(model: nn.Module) -> list[nn.Module]:
    """Return the linear modules that `residual_writers` names, block by block, attention first."""
    modules = dict(model.named_modules())
    return [modules[name] for pair in residual_writers(model) for name in pair.names]


def _run_one_token(model: nn.Module) -> None:
    parameter = next(model.parameters())
    token = torch.zeros((1, 1), dtype=torch.long, device=parameter.device)
    # A ready mask: making one needs values, which a model without weights (meta device) does not have.
    mask = torch.zeros((1, 1, 1, 1), dtype=parameter.dtype, device=parameter.device)
    try:
        model(input_ids=token, attention_mask=mask, use_cache=False)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ArchitectureError(f"{type(model).__name__}: a forward pass of one token failed: {error}") from error


def _writers(name: str, block: nn.Module, final: list[str]) -> Writers:
    if len(final) != 2:
        raise ArchitectureError(
            f"{name} ({type(block).__name__}): looked for exactly two linear modules whose output is the output of "
            f"the attention and of the MLP, found {final or 'none'}; mixtures of experts and fused blocks are not "
            "supported"
        )
    return Writers(*final)

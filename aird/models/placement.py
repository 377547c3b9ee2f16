"""Where the parts of a model go that is spread over several GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from aird.models.blocks import decoder_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def spread(model: PreTrainedModel, gpus: int) -> dict[str, int]:
    """Return on which GPU each part of a model goes, as the `device_map` of Transformers.

    The decoder blocks are dealt in their order, so that each GPU holds about as many weights as any other. All else
    is on the first one, the output head too: where the tokens go in, the logits come out, and whoever chooses tokens
    or compares logits works on one device. Inside a block everything is on one device.

    Args:
        model: with or without weights (`aird.models.loading.load_structure`).
        gpus: their number.
    """
    blocks = decoder_blocks(model)
    sizes = [_size(block) for block in blocks]
    places: dict[str, int] = {}
    _place_outside(model, "", blocks, places)
    total = _size(model)
    before = total - sum(sizes)
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    for index, size in enumerate(sizes):
        places[f"{prefix}.{index}"] = min(gpus - 1, int((before + size / 2) * gpus / total))
        before += size
    return places


def largest_share(model: PreTrainedModel, gpus: int) -> int:
    """Return how many weights the GPU gets that gets most of them, where a model is on so many GPUs."""
    if gpus == 1:
        return _size(model)
    places = spread(model, gpus)
    shares = [0] * gpus
    for name, parameter in model.named_parameters():
        gpu = next(gpu for part, gpu in places.items() if f"{name}.".startswith(f"{part}."))
        shares[gpu] += parameter.numel()
    return max(shares)


def _place_outside(module: nn.Module, prefix: str, blocks: nn.ModuleList, places: dict[str, int]) -> None:
    """Put whatever does not hold the blocks on the first GPU."""
    own = [name for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]]
    places |= dict.fromkeys((prefix + name for name in own), 0)
    for name, child in module.named_children():
        if child is blocks:
            continue
        if any(inner is blocks for inner in child.modules()):
            _place_outside(child, f"{prefix}{name}.", blocks, places)
        else:
            places[prefix + name] = 0


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

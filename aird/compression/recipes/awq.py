"""Quantise by AWQ (arXiv:2306.00978): scale input channels, then round with a zero point."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from aird.compression.recipe import Recipe, RecipeInputs
from aird.compression.rounding import FourBitSettings, integers, scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AWQ(FourBitSettings):
    """Scale input channels by how much the activations use them, then round with a zero point (arXiv:2306.00978).

    The scales go into the norm before each group of matrices. Matrices that write to the residual
    stream are rounded unscaled, so that their inputs stay the original's: AIRD compares the two.
    """

    rescales_norms: ClassVar[bool] = True

    recipe: Literal["awq"] = "awq"


def write(settings: AWQ, inputs: RecipeInputs, folder: Path) -> None:
    """Write the source's weights, their input channels scaled, rounded with a zero point."""
    from aird.compression.oneshot import apply

    weights = {**integers(settings.weight_bits, settings.group_size), "symmetric": False}
    with _pinning_no_memory():
        apply("quantization", "QuantizationModifier", scheme(weights), inputs, folder, first=_channel_scales)


def _channel_scales(model: PreTrainedModel) -> Any:
    """Return AWQ's search for channel scales, without those that would reach into the residual writers' inputs.

    Raises:
        ValueError: llm-compressor does not know which norm stands before which matrices of this model.
    """
    from compressed_tensors.utils import match_name
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.awq.dynamic_mappings import (
        AWQ_DYNAMIC_MAPPING_REGISTRY,
        get_layer_mappings_from_model,
    )
    from llmcompressor.modifiers.transform.awq.mappings import AWQ_MAPPING_REGISTRY

    from aird.models.structure import residual_writers

    # It would take Llama's names, which elsewhere may be those of a norm behind the matrices.
    name = type(model).__name__
    if name not in {*AWQ_MAPPING_REGISTRY, *AWQ_DYNAMIC_MAPPING_REGISTRY}:
        raise ValueError(
            f"llm-compressor's AWQ does not know {name}, and would scale by the names of another model; use another "
            "recipe, such as gptq or round_to_nearest"
        )
    writers = [name for pair in residual_writers(model) for name in pair.names]
    kept = [
        mapping
        for mapping in get_layer_mappings_from_model(model)
        if not any(match_name(writer, target) for target in mapping.balance_layers for writer in writers)
    ]
    return AWQModifier(mappings=kept)


@contextlib.contextmanager
def _pinning_no_memory() -> Iterator[None]:
    """Where there is no GPU, let AWQ not pin the memory that would be copied to it, which fails (docs/tricks.md)."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    pin_memory = IntermediatesCache.pin_memory
    if not torch.cuda.is_available():
        IntermediatesCache.pin_memory = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = pin_memory  # type: ignore[method-assign]


RECIPE = Recipe(settings=AWQ, title="{settings.weight_bits}-bit AWQ", write=write)

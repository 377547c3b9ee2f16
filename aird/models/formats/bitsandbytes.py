"""bitsandbytes: LLM.int8, and 4-bit floats in blocks (NF4, FP4)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aird.models.format import Format, Quantisation, Stored

if TYPE_CHECKING:
    import torch

    from aird.models.checkpoint import Checkpoint

_FOUR_BITS = "weight.quant_state.bitsandbytes__"


def refusal(quantisation: Quantisation) -> str | None:
    """Refuse 4-bit weights that are kept in another type than bytes."""
    storage = quantisation.get("bnb_4bit_quant_storage", "uint8")
    if _has_four_bits(quantisation) and storage != "uint8":
        return f"is 4-bit bitsandbytes kept in {storage}, which is not read; save it with bnb_4bit_quant_storage uint8"
    return None


def recognise(stored: Stored) -> str | None:
    """Return the form by the tables beside the weight."""
    dtype = stored["weight"].dtype if "weight" in stored else None
    if dtype == "I8" and "SCB" in stored:
        return "bitsandbytes-int8"
    kinds = [kind for kind in ("nf4", "fp4") if f"{_FOUR_BITS}{kind}" in stored]
    return f"bitsandbytes-{kinds[0]}" if dtype == "U8" and kinds else None


def shape(stored: Stored) -> tuple[int, int]:
    """Return (d_out, d_in); of packed floats, by what bitsandbytes noted."""
    state = next((tensor for local, tensor in stored.items() if local.startswith(_FOUR_BITS)), None)
    rows, columns = stored["weight"].shape if state is None else json.loads(bytes(state.load().tolist()))["shape"]
    return rows, columns


def matrix(
    checkpoint: Checkpoint, module: str, loaded: dict[str, torch.Tensor], scale_dtype: torch.dtype | None
) -> torch.Tensor:
    """Decode by bitsandbytes' own functions."""
    import torch
    from bitsandbytes.functional import QuantState, dequantize_4bit, int8_vectorwise_dequant

    if "SCB" in loaded:
        integers: torch.Tensor = int8_vectorwise_dequant(loaded["weight"], loaded["SCB"])
        return integers
    packed = loaded.pop("weight")
    return dequantize_4bit(packed, QuantState.from_dict(loaded, device=torch.device("cpu")))


def declared(checkpoint: Checkpoint, module: str) -> str:
    """Return the form of a module that is not skipped."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    config = checkpoint.quantization_config or {}
    # A name there may be a part of a block, or a pattern.
    if not should_convert_module(module, config.get("llm_int8_skip_modules") or []):
        return "dense"
    return f"bitsandbytes-{config['bnb_4bit_quant_type'] if _has_four_bits(config) else 'int8'}"


def _has_four_bits(quantisation: Quantisation) -> bool:
    return bool(quantisation.get("load_in_4bit") or quantisation.get("_load_in_4bit"))


FORMAT = Format(
    forms=("bitsandbytes-int8", "bitsandbytes-nf4", "bitsandbytes-fp4"),
    refusal=refusal,
    recognise=recognise,
    shape=shape,
    matrix=matrix,
    declared=declared,
    rounded=("bitsandbytes-int8",),
    served=False,
    passes_gradients=False,
    dense_key="llm_int8_skip_modules",
    lists_outside=True,  # without a list Transformers leaves the output head alone; with one, only what it names
    package="bitsandbytes",
)

"""Quantise with bitsandbytes: LLM.int8 (arXiv:2208.07339) and NF4 (arXiv:2305.14314)."""

from __future__ import annotations

from pathlib import Path

from aird.models.checkpoint import Checkpoint
from aird.models.loading import code_is_trusted
from aird.settings.compressions import BitsAndBytes


def quantise_by_bitsandbytes(
    source: Checkpoint, output: Path, settings: BitsAndBytes, calibration: None = None
) -> None:
    """Write `source`'s weights in bitsandbytes' own format; `matrices.dense_matrix` reads them back.

    Transformers leaves the output head alone by itself, tied or not.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

    set_seed(0)
    config = BitsAndBytesConfig(
        load_in_8bit=settings.variant == "int8",
        load_in_4bit=settings.variant == "nf4",
        bnb_4bit_quant_type="nf4",
    )
    # On the CPU even where there is a GPU, so that every machine writes the same bytes.
    model = AutoModelForCausalLM.from_pretrained(
        str(source.folder),
        dtype="auto",
        quantization_config=config,
        device_map="cpu",
        use_safetensors=True,
        trust_remote_code=code_is_trusted(),
    )
    model.save_pretrained(output, max_shard_size="5GB")

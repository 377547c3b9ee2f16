"""Quantise with bitsandbytes: LLM.int8 (arXiv:2208.07339) and NF4 (arXiv:2305.14314)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from aird.compression.recipe import Recipe, RecipeInputs
from aird.settings.compressions import WeightSettings


class BitsAndBytes(WeightSettings):
    """Quantise as bitsandbytes does: LLM.int8 (arXiv:2208.07339) or NF4 (arXiv:2305.14314)."""

    recipe: Literal["bitsandbytes"] = "bitsandbytes"
    variant: Literal["int8", "nf4"] = Field(description="LLM.int8, or 4-bit NormalFloat in blocks of 64.")

    @property
    def storage_bits(self) -> int | None:
        """Bits of one weight."""
        return 8 if self.variant == "int8" else 4

    @property
    def storage_format(self) -> str:
        """The variant's own format."""
        return f"bitsandbytes-{self.variant}"


def write(settings: BitsAndBytes, inputs: RecipeInputs, folder: Path) -> None:
    """Write the source's weights in bitsandbytes' own format; `matrices.dense_matrix` reads them back.

    Transformers leaves the output head alone by itself, tied or not.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

    from aird.models.loading import code_is_trusted

    set_seed(0)
    config = BitsAndBytesConfig(
        load_in_8bit=settings.variant == "int8",
        load_in_4bit=settings.variant == "nf4",
        bnb_4bit_quant_type="nf4",
    )
    # On the CPU even where there is a GPU, so that every machine writes the same bytes.
    model = AutoModelForCausalLM.from_pretrained(
        str(inputs.source.folder),
        dtype="auto",
        quantization_config=config,
        device_map="cpu",
        use_safetensors=True,
        trust_remote_code=code_is_trusted(),
    )
    model.save_pretrained(folder, max_shard_size="5GB")


RECIPE = Recipe(settings=BitsAndBytes, title="bitsandbytes {settings.variant}", write=write, gpu=False)

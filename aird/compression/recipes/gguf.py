"""Convert to GGUF and quantise, both by llama.cpp's own code."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from aird.compression.gguf_environment import GGUF_ENVIRONMENT
from aird.compression.recipe import Recipe, RecipeInputs
from aird.settings.compressions import ServedSettings
from aird.support.environments import Environment


class GGUF(ServedSettings):
    """Convert to GGUF and quantise by llama.cpp's own code, embeddings and the output head included.

    The checkpoint holds the file, and its decoded weights for all that reads weights. There is no importance
    matrix, so types that need one (IQ1, IQ2, IQ3) are not offered. F32, F16 and BF16 quantise nothing: so llama.cpp
    serves the original's own weights.
    """

    rounds_embeddings: ClassVar[bool] = True  # as llama.cpp does

    recipe: Literal["gguf"] = "gguf"
    type: Literal[
        "F32",
        "F16",
        "BF16",
        "Q2_K",
        "Q3_K_S",
        "Q3_K_M",
        "Q3_K_L",
        "Q4_0",
        "Q4_1",
        "Q4_K_S",
        "Q4_K_M",
        "Q5_0",
        "Q5_1",
        "Q5_K_S",
        "Q5_K_M",
        "Q6_K",
        "Q8_0",
        "IQ4_NL",
        "IQ4_XS",
    ] = Field(
        description="llama.cpp's name. K-quants and IQ4_XS need columns in multiples of 256; other matrices get a "
        "larger type."
    )

    @property
    def environment(self) -> Environment | None:
        """llama.cpp's quantiser and converter."""
        return GGUF_ENVIRONMENT

    def holds_gguf(self, model: str) -> bool:
        """Always true."""
        return True


def write(settings: GGUF, inputs: RecipeInputs, folder: Path) -> None:
    """Write the source as a GGUF file (`model.gguf`) and as the dense weights that this file holds.

    Raises:
        RuntimeError: a program of llama.cpp failed.
        ValueError: the converter does not know the architecture, llama.cpp has no tokenizer that splits text as the
            model's does, no matrix could take the type, or the weights that come back are not the original's.
    """
    from aird.compression.gguf_files import write_gguf

    write_gguf(inputs.source, folder, settings.type, inputs.python)


RECIPE = Recipe(settings=GGUF, title="GGUF {settings.type}", write=write, gpu=False)

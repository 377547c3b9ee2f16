"""The recipe that changes no weight: the original, served with a quantised key/value cache.

The evaluation starts its server with that type. Transformers keeps keys and values in the model's type, so directions,
activations and learnt patches of such a compression are those of the original.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from aird.compression.gguf_environment import GGUF_ENVIRONMENT
from aird.compression.recipe import Recipe, RecipeInputs
from aird.settings.compressions import CACHE_DTYPES, CacheDtype, RecipeSettings
from aird.support.environments import Environment


class KeyValueCache(RecipeSettings):
    """Serve the original with a quantised key/value cache; no weight changes (docs/method.md)."""

    changes_weights: ClassVar[bool] = False
    cache_key: ClassVar[str] = "dtype"

    recipe: Literal["kv_cache"] = "kv_cache"
    dtype: CacheDtype = Field(
        description="Type of the cached keys and values: fp8 (E4M3) or fp8_e5m2 by vLLM; q8_0 or q4_0 by llama.cpp, "
        "which is given the original's weights in a GGUF file."
    )

    @property
    def environment(self) -> Environment | None:
        """llama.cpp's converter, where llama.cpp serves it."""
        return GGUF_ENVIRONMENT if self.dtype in CACHE_DTYPES["llama.cpp"] else None

    def holds_gguf(self, model: str) -> bool:
        """Return whether llama.cpp serves it."""
        return self.environment is not None


def write(settings: KeyValueCache, inputs: RecipeInputs, folder: Path) -> None:
    """Put the original's weights into the folder, as hard links or copies; for llama.cpp in a GGUF file."""
    original = inputs.source
    if settings.environment is not None:
        from aird.compression.gguf_files import write_gguf

        write_gguf(original, folder, None, inputs.python)
        return
    index = original.folder / "model.safetensors.index.json"
    for path in [*original.weight_files, *([index] if index.is_file() else [])]:
        try:
            os.link(path, folder / path.name)
        except OSError:
            shutil.copyfile(path, folder / path.name)


RECIPE = Recipe(settings=KeyValueCache, title="a key/value cache in {settings.dtype}", write=write, gpu=False)

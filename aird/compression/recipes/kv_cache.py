"""The recipe that changes no weight: the original, served with a quantised key/value cache.

The evaluation starts its server with that type. Transformers keeps keys and values in the model's type, so directions,
activations and learnt patches of such a compression are those of the original.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from aird.compression.gguf_environment import GGUF_ENVIRONMENT
from aird.compression.recipe import Recipe, RecipeInputs
from aird.plugin import ENGINES, plugin_files
from aird.settings.base import Text
from aird.settings.compressions import RecipeSettings
from aird.settings.weights import WeightForm
from aird.support.environments import Environment


class KeyValueCache(RecipeSettings):
    """Serve the original with a quantised key/value cache; no weight changes (docs/method.md)."""

    changes_weights: ClassVar[bool] = False
    cache_key: ClassVar[str] = "dtype"

    recipe: Literal["kv_cache"] = "kv_cache"
    dtype: Text = Field(description="fp8 (E4M3) or fp8_e5m2 by vLLM; q8_0 or q4_0 by llama.cpp.")

    @property
    def environment(self) -> Environment | None:
        """llama.cpp's converter, where an engine of GGUF files serves it."""
        return GGUF_ENVIRONMENT if self.holds_gguf("") else None

    def holds_gguf(self, model: str) -> bool:
        """Return whether the engines that have this type serve GGUF files."""
        return _of_gguf(self.dtype, *plugin_files())


@cache
def _of_gguf(dtype: str, *plugins: Path) -> bool:
    """Return whether the engines that have a type of cache serve GGUF files; a plan asks this for every job."""
    kinds = map(ENGINES.load, ENGINES.names())
    return {kind.weights for kind in kinds if dtype in kind.key_value_cache_dtypes} == {WeightForm.GGUF_FILE}


def write(settings: KeyValueCache, inputs: RecipeInputs, folder: Path) -> None:
    """Put the original's weights into the folder, linked or copied; in a GGUF file where a converter is given."""
    original = inputs.source
    if inputs.python is not None:
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

"""The recipe that changes no weight: the original, served with a quantised key/value cache.

The evaluation starts its server with that type. Transformers keeps keys and values in the model's type, so directions,
activations and learnt patches of such a compression are those of the original.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from aird.compression.gguf_recipe import write_gguf
from aird.models.checkpoint import Checkpoint
from aird.settings.compressions import KeyValueCache


def keep_weights(
    original: Checkpoint, output: Path, settings: KeyValueCache, calibration: None, python: Path | None = None
) -> None:
    """Put the original's weights into the folder `output`, for llama.cpp in a GGUF file.

    Args:
        original: the original checkpoint.
        output: an existing folder. It gets hard links, or copies on another file system.
        settings: the recipe.
        calibration: none.
        python: of the environment that writes GGUF files (`aird.compression.gguf_recipe`); None writes none.

    Raises:
        RuntimeError, ValueError: as of `write_gguf`.
    """
    if python is not None:
        write_gguf(original, output, None, python)
        return
    index = original.folder / "model.safetensors.index.json"
    for path in [*original.weight_files, *([index] if index.is_file() else [])]:
        try:
            os.link(path, output / path.name)
        except OSError:
            shutil.copyfile(path, output / path.name)

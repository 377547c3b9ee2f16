"""The recipe that changes no weight: the original, served with a quantised key/value cache.

The type stands in the manifest, from where the evaluation starts its server with it. Transformers keeps keys and values
in the model's type, so directions, activations and learnt patches of such a compression are those of the original.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from aird.models.checkpoint import Checkpoint
from aird.settings.compressions import KeyValueCache


def keep_weights(original: Checkpoint, output: Path, settings: KeyValueCache, calibration: None) -> None:
    """Put the original's weight files into the folder `output`: as hard links, or as copies on another file system."""
    index = original.folder / "model.safetensors.index.json"
    for path in [*original.weight_files, *([index] if index.is_file() else [])]:
        try:
            os.link(path, output / path.name)
        except OSError:
            shutil.copyfile(path, output / path.name)


def cache_dtype(manifest: dict[str, object]) -> str | None:
    """Return the type of the key/value cache that a checkpoint's manifest asks for; None for the model's own."""
    settings = manifest.get("settings")
    if not isinstance(settings, dict) or settings.get("recipe") != "kv_cache":
        return None
    return KeyValueCache.model_validate(settings).dtype

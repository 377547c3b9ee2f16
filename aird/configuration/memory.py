"""How much memory the weights of a model take, as far as it is known when a job is planned.

Nothing is fetched or read but sizes of files, and config.json: the workflow asks whenever it plans.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from aird.settings.sources import ModelSource
from aird.support.checkpoint_patterns import weight_files

# Billions of parameters of a model that nobody has seen yet.
OF_A_WHEEL = 0.5  # a registry takes files of some 100 MB
OF_A_HUB = 8.0
BYTES = 2  # of a parameter, in bfloat16 and float16
GGUF_BITS = 4  # of a parameter: more of them would only ask for less memory


def weight_megabytes(
    source: ModelSource, billions: float | None = None, imported: Iterable[Path] = (), float32: bool = False
) -> int:
    """Return the memory that the weights of a model take once, MB.

    Args:
        source: where it comes from; a local one is measured.
        billions: what the configuration says of its parameters; it goes before all else.
        imported: folders of its checkpoint; the first that is there is measured.
        float32: a job may compute in float32, whatever type is stored.
    """
    local = [Path(source.path)] if source.path is not None else []
    folder = next((path for path in (*imported, *local) if weight_files(path)), None)
    stored32 = folder is not None and _dtype(folder) == "float32"
    if billions is not None:
        size = billions * 1e9 * BYTES * (2 if stored32 else 1)
    elif folder is not None:
        size = sum(path.stat().st_size for path in weight_files(folder))
    elif local and local[0].is_file():
        size = local[0].stat().st_size * 8 / GGUF_BITS * BYTES
    else:
        size = (OF_A_HUB if source.hub is not None else OF_A_WHEEL) * 1e9 * BYTES
    return round(size * (2 if float32 and not stored32 else 1) / 1e6)


def _dtype(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # said elsewhere, or by the import
    return config.get("dtype") or config.get("torch_dtype") if isinstance(config, dict) else None

"""Which records a grid has, and where they lie: said here once for the rules, for the tables and for `make tables`.

Nothing heavy is imported here, as the workflow reads this whenever it is parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aird.settings.base import ORIGINAL, PLAIN

Key = tuple[str, ...]

# Each kind of record: what people call it, and where one lies below results/. In the order in which a run makes them.
# A key's parts are joined by slashes where the path says {}.
KINDS = {
    "manifests": ("checkpoints", "models/{}/manifest.json"),
    "candidates": ("candidate scores", "directions/{}/scores.csv"),
    "directions": ("directions", "directions/{}/direction.json"),
    "verifications": ("verified directions", "directions/{}/verification.json"),
    "cosmic": ("directions by COSMIC", "directions/{}/cosmic.json"),
    "comparisons": ("compared directions", "comparisons/{}.json"),
    "patches": ("patches", "patches/{}/statistics.json"),
    "examinations": ("examined patched checkpoints", "restorations/{}/verification.json"),
    "restorations": ("compared patched checkpoints", "restorations/{}/comparison.json"),
    "scores": ("evaluations", "scores/{}.json"),
    "merged": ("merged checkpoints", "patches/{}/merged/manifest.json"),
}


def keys_of(grid: Mapping[str, Any]) -> dict[str, list[Key]]:
    """Return the keys of the records that a grid has, per kind.

    They are (model, compression); of patches, merged or not, and of examined patched checkpoints (model, compression,
    patch), of scores (model, compression, patch, suite).

    Args:
        grid: the settings of the rule make_tables: cells, pairs, the pairs for which COSMIC chooses, the patches whose
            checkpoints are examined, suites, and the compressions that change no weights, if there are any: their
            directions would be the original's.
    """
    pairs = [tuple(pair) for pair in grid["pairs"]]
    directed = [pair for pair in pairs if pair[1] not in grid["same_weights"]]
    cells = [tuple(cell) for cell in grid["cells"]]
    examined = [cell for cell in cells if cell[2] in grid["patched"] and cell[1] != ORIGINAL]
    patched = [cell for cell in cells if cell[2] != PLAIN]
    return {
        "manifests": pairs,
        **dict.fromkeys(("candidates", "directions", "verifications"), directed),
        "cosmic": [tuple(pair) for pair in grid["cosmic"]],
        "comparisons": [pair for pair in directed if pair[1] != ORIGINAL],
        **dict.fromkeys(("patches", "merged"), patched),
        **dict.fromkeys(("examinations", "restorations"), examined),
        "scores": [(*cell, suite) for suite in grid["suites"] for cell in cells],
    }


def record_path(results: Path | str, kind: str, key: Key) -> Path:
    """Return where a record lies below the folder results/."""
    return Path(results) / KINDS[kind][1].format("/".join(key))


def record_files(results: Path | str, grid: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the files of all records of a grid, per kind; arguments as of the functions above."""
    return {kind: [str(record_path(results, kind, key)) for key in keys] for kind, keys in keys_of(grid).items()}

"""Directions, edits and adapters of the tiny models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tiny_model import new

from aird.directions.direction import Direction, save_direction
from aird.patching.adapters import merge, save_adapter
from aird.patching.edits import Edit


def unit_vector(seed: int = 1, width: int = 128) -> torch.Tensor:
    """Return a random unit vector, [width] float64."""
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vector / vector.norm()


def saved_direction(
    folder: Path, unit: torch.Tensor, name: str = "direction", layer: int = 2, **record: Any
) -> tuple[Path, Path]:
    """Write a direction at the last token of a layer; return its two files."""
    files = folder / f"{name}.safetensors", folder / f"{name}.json"
    save_direction(Direction(unit, 3.0, {"layer": layer, "position": -1, **record}), *files)
    return files


def random_edits(modules: Iterable[str], strength: float, seed: int = 5) -> list[Edit]:
    """Return edits of matrices of the tiny models, along random unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Edit.rank_one(
            module,
            column=torch.nn.functional.normalize(torch.randn(128, generator=generator), dim=0),
            row=strength * torch.randn(256 if module.endswith("down_proj") else 128, generator=generator),
        )
        for module in modules
    ]


def adapter_of(edits: list[Edit], folder: Path) -> Path:
    """Write edits as an adapter into a new folder, and return it."""
    save_adapter(edits, new(folder), "base")
    return folder


def merged(checkpoint: Path, edits: list[Edit], folder: Path) -> Path:
    """Write a checkpoint with edits merged into it into a new folder, and return it."""
    merge(checkpoint, edits, new(folder))
    return folder

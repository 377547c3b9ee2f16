"""A refusal direction: a unit vector, its norm and its site; written and read.

aird/directions/choice.py chooses it; comparisons and patches begin with it. `direction.safetensors` holds `unit`
[d_model] and `norm` [1], both float64, and `direction.json` the site (layer, position), how it was chosen and its
scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aird.support.files import read_json, write_json
from aird.support.tensor_files import load_tensors, save_tensors


@dataclass(frozen=True)
class Direction:
    """The refusal direction of one checkpoint.

    Attributes:
        unit: [d_model] float64, of norm 1.
        norm: norm of the raw difference in means.
        record: its site and how it was chosen, as in `direction.json`.
    """

    unit: torch.Tensor
    norm: float
    record: dict[str, Any]

    @property
    def layer(self) -> int:
        """Index l of the site: the direction lives at the input of block l."""
        return int(self.record["layer"])

    @property
    def position(self) -> int:
        """Negative index of the site's post-instruction token."""
        return int(self.record["position"])


def save_direction(direction: Direction, tensors: Path, record: Path) -> None:
    """Write a direction to its two files."""
    norm = torch.tensor([direction.norm], dtype=torch.float64)
    save_tensors({"unit": direction.unit, "norm": norm}, tensors)
    write_json(record, direction.record)


def load_direction(tensors: Path, record: Path) -> Direction:
    """Read a direction from its two files.

    Raises:
        ValueError: the tensors are missing, truncated or altered.
    """
    stored, _ = load_tensors(tensors)
    return Direction(stored["unit"], stored["norm"].item(), read_json(record))

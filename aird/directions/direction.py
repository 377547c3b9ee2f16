"""A refusal direction: a unit vector, its norm and its site; chosen, written and read.

`direction.safetensors` holds `unit` [d_model] and `norm` [1], both float64, and
`direction.json` the site (layer, position), how it was chosen and its scores.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from aird.directions.activation_cache import Cache, kept_activations, kept_counts
from aird.directions.activations import difference_in_means
from aird.directions.selection import Selection, select_site
from aird.directions.stability import site_stability
from aird.settings.directions import Directions
from aird.support.files import read_json, write_json
from aird.support.tensor_files import load_tensors, save_tensors


@dataclasses.dataclass(frozen=True)
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


def choose_direction(
    cache: Cache,
    scores: Iterable[dict[str, Any]],
    prompt_scores: dict[str, torch.Tensor],
    settings: Directions,
    seed: int,
    cosmic: Mapping[str, Any] | None = None,
) -> Direction:
    """Return the best candidate direction of a checkpoint (aird/directions/selection.py, aird/directions/cosmic.py).

    Args:
        cache: the checkpoint's activation cache.
        scores: records with layer, position, induce, kl and bypass (None or NaN where not computed).
        prompt_scores: the same scores per prompt, from which the site's stability is resampled.
        settings: the filters.
        seed: of the resamples.
        cosmic: the record of `cosmic_direction`, which settings may ask for.

    Raises:
        ValueError: no candidate has scores that are numbers.
    """
    rows = list(scores)
    candidates = difference_in_means(*kept_activations(cache, "train"))
    layers, positions, _ = candidates.shape
    selection = select_site(rows, layers, settings)
    if settings.selector == "cosmic" or (settings.fallback == "cosmic" and selection.rule != "published"):
        assert cosmic is not None, "these settings need COSMIC's site"
        # Nothing survived Arditi's filters, or nobody asked.
        selection = Selection(cosmic["layer"], cosmic["position"], cosmic["rule"], 0, cosmic["kl_limit"])
    vector = candidates[selection.layer, selection.position]
    chosen = next(row for row in rows if (row["layer"], row["position"]) == (selection.layer, selection.position))
    record = {
        **dataclasses.asdict(selection),
        **{name: _number(chosen[name]) for name in ("induce", "kl", "bypass")},
        "layers": layers,
        "positions": positions,
        "candidates": layers * positions,
        "norm": vector.norm().item(),
        "prompts": kept_counts(cache),
        "stability": site_stability(prompt_scores, (selection.layer, selection.position), settings, seed),
    }
    return Direction(vector / vector.norm(), vector.norm().item(), record)


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


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value

"""Compute a patch of a compressed checkpoint: which matrices, which direction, which rows.

The formula's members need the matrices alone and are made here; a fitted patch runs both models
over the direction prompts (aird/patching/fitted_patch.py).
"""

from __future__ import annotations

import hashlib
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch

from aird.directions.direction import Direction
from aird.models.loading import load_structure, stored_gains
from aird.models.matrices import dense_matrix
from aird.models.structure import residual_writers
from aird.patching.edits import Edit, edited_blocks, make_edits, patch_direction
from aird.settings.patches import RankOneFormula, RankOneSettings

logger = logging.getLogger(__name__)

Patched = tuple[list[Edit], dict[str, Any]]  # the edits, and the record of what they change


def compute_patch(
    original: Path, compressed: Path, direction: Direction, own: Direction | None, settings: RankOneFormula
) -> Patched:
    """Return the edits of a patch that needs no prompts (`scale`, `project`), and its record.

    Args:
        original, compressed: checkpoint folders.
        direction: the original's refusal direction.
        own: the compressed checkpoint's direction; needed where the settings ask for it.
        settings: the patch.

    Raises:
        ValueError: a block does not exist, or shapes do not fit together.
    """
    unit = patch_unit(direction, own, settings)
    blocks, modules = edited_modules(load_structure(original), direction, settings)
    edits, statistics = make_edits(
        modules,
        unit,
        partial(dense_matrix, compressed),
        partial(dense_matrix, original),
        settings,
        stored_gains(compressed),
        stored_gains(original),
    )
    return edits, patch_record(blocks, statistics, settings, direction, unit)


def edited_modules(model: Any, direction: Direction, settings: RankOneSettings) -> tuple[list[int], list[str]]:
    """Return the indices of the blocks that a patch edits, and the full names of their writers, in order.

    Args:
        model: the model, or its structure alone.
        direction: the original's direction, whose site `source` blocks hang on.
        settings: the patch.

    Raises:
        ValueError: a configured block does not exist, or no matrix in the blocks can be edited.
    """
    writers = residual_writers(model)
    blocks = edited_blocks(settings, direction.layer, len(writers))
    obstacles = [text for block in blocks for text in writers[block].obstacles]
    modules = [name for block in blocks for name in writers[block].names]
    if not modules:
        raise ValueError(f"nothing in blocks {blocks} can be edited: {'; '.join(obstacles)}")
    if obstacles:
        logger.warning("not edited: %s", "; ".join(obstacles))
    return blocks, modules


def patch_unit(direction: Direction, own: Direction | None, settings: RankOneSettings) -> torch.Tensor:
    """Return the unit direction of a patch, [d_model] float64.

    Raises:
        ValueError: the settings ask for the compressed model's own direction, which is not given.
    """
    if own is None and settings.direction == "own":
        raise ValueError("direction: own needs the compressed model's own direction, which was not given")
    return patch_direction(settings, direction.unit, own.unit if own else direction.unit)


def patch_record(
    blocks: list[int],
    statistics: list[dict[str, Any]],
    settings: RankOneSettings,
    direction: Direction,
    unit: torch.Tensor,
) -> dict[str, Any]:
    """Return what is written about a patch besides its adapter's size and hashes.

    Args:
        blocks: indices of the edited blocks.
        statistics: `edit_statistics` of each edit.
        settings: the patch.
        direction: the original's direction, whose site says which blocks are edited.
        unit: [d_model], the direction that is written.
    """
    sha256 = hashlib.sha256(unit.double().contiguous().numpy().tobytes()).hexdigest()
    return {
        "blocks": blocks,
        "edits": statistics,
        "settings": settings.model_dump(exclude={"compressions"}),
        "direction": {"layer": direction.layer, "position": direction.position, "sha256": sha256},
    }

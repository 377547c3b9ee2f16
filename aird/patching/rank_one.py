"""What all rank-1 patches share: which matrices, along which direction, and what is written about them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aird.directions.direction import Direction, load_direction
from aird.models.loading import load_structure
from aird.models.structure import Contribution, residual_writers
from aird.patching.adapters import save_adapter
from aird.patching.edits import Edit, edited_blocks, patch_direction
from aird.patching.method import PatchInputs
from aird.settings.patches import RankOneSettings

logger = logging.getLogger(__name__)


def read_direction(settings: RankOneSettings, inputs: PatchInputs) -> tuple[Direction, torch.Tensor]:
    """Return the original's direction, and the unit direction of the patch, [d_model] float64."""
    direction = load_direction(*inputs.direction)
    own = load_direction(*inputs.own) if inputs.own else direction
    return direction, patch_direction(settings, direction.unit, own.unit)


def read_source(settings: RankOneSettings, inputs: PatchInputs) -> Direction:
    """Return the direction whose site `source` blocks hang on: the original's, with `own_source` the compressed one's.

    It says where is written. What is written is another question (`read_direction`).
    """
    if settings.blocks != "own_source":
        return load_direction(*inputs.direction)
    own = load_direction(*inputs.own)
    if own.record.get("rule") == "relaxed_induce":
        logger.warning(
            "no candidate direction of %s induces refusal, so the site that its own_source blocks write, layer %d, is "
            "no source of it",
            inputs.base,
            own.layer,
        )
    return own


def edited_modules(
    model: Any, source: Direction, settings: RankOneSettings, experts: bool = True
) -> tuple[list[int], list[str]]:
    """Return the indices of the blocks that a patch edits, and the full names of their writers, in order.

    Args:
        model: the model, or its structure alone.
        source: the direction whose site `source` and `own_source` blocks hang on (`read_source`).
        settings: the patch.
        experts: name the parameters of experts too.

    Raises:
        ValueError: a configured block does not exist, or no matrix in the blocks can be edited.
    """
    writers = residual_writers(model)
    blocks = edited_blocks(settings, source.layer, len(writers))
    obstacles = [text for block in blocks for text in writers[block].obstacles]
    modules = [
        name for block in blocks for name in (*writers[block].names, *(writers[block].experts if experts else ()))
    ]
    if not modules:
        raise ValueError(f"nothing in blocks {blocks} can be edited: {'; '.join(obstacles)}")
    return blocks, modules


def save_edits(
    edits: Sequence[Edit],
    statistics: list[dict[str, Any]],
    blocks: list[int],
    direction: Direction,
    unit: torch.Tensor,
    inputs: PatchInputs,
    folder: Path,
) -> dict[str, Any]:
    """Write the edits as an adapter into `folder`, and return what there is to say about them.

    `not_edited` names what the blocks write besides, each with the reason. An adapter of experts has `experts`: PEFT's
    names of their parameters. In which form it was measured, the measurement says (`served_as`).

    Args:
        edits: at least one edit.
        statistics: `edit_statistics` of each edit.
        blocks: indices of the edited blocks.
        direction: the original's direction.
        unit: [d_model] float64, the direction that is written.
        inputs: of the patch.
        folder: an existing, empty folder.
    """
    structure = load_structure(inputs.original)
    save_adapter(edits, folder, inputs.base, structure)
    names, writers = {edit.module for edit in edits}, residual_writers(structure)
    not_edited = [text for block in blocks for each in writers[block].contributions if (text := _left_out(each, names))]
    if not_edited:
        logger.warning("not edited: %s", "; ".join(not_edited))
    experts = sorted(edit.module for edit in edits if edit.row.ndim == 2)
    sha256 = hashlib.sha256(unit.double().contiguous().numpy().tobytes()).hexdigest()
    record: dict[str, Any] = {
        "blocks": blocks,
        "edits": statistics,
        "not_edited": not_edited,
        **({"experts": {"target_parameters": experts}} if experts else {}),
        "direction": {"layer": direction.layer, "position": direction.position, "sha256": sha256},
    }
    if inputs.own:
        own = load_direction(*inputs.own)
        record["own_direction"] = {"layer": own.layer, "position": own.position, "rule": own.record.get("rule")}
    return record


def _left_out(contribution: Contribution, edited: set[str]) -> str:
    name = contribution.writer or contribution.experts
    if name is None or name in edited or contribution.obstacle:
        return contribution.obstacle
    return f"{name}: this method edits linear modules only"

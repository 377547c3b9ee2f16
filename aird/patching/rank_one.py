"""What all rank-1 patches share: along which direction, which matrices, and what is written about them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from aird.directions.direction import Direction, load_direction
from aird.models.blocks import Contribution
from aird.models.experts import matrix_reader
from aird.models.loading import load_structure
from aird.models.structure import residual_writers
from aird.patching.adapters import save_adapter
from aird.patching.edits import Edit, edit_statistics, edited_blocks, patch_direction, size_record
from aird.patching.method import PatchInputs
from aird.patching.records import EditRecord, PatchRecord
from aird.settings.patches import RankOneSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Directions:
    """The directions of a patch: what is written, and where.

    Attributes:
        original: the original's refusal direction.
        own: the compressed checkpoint's; None where it was not asked for.
        unit: [d_model] float64, the unit direction that is written.
        source: the direction whose site `source` blocks hang on: the original's, with `own_source` the checkpoint's.
    """

    original: Direction
    own: Direction | None
    unit: torch.Tensor
    source: Direction


def read_directions(settings: RankOneSettings, inputs: PatchInputs) -> Directions:
    """Return the directions of a patch."""
    original = load_direction(*inputs.direction)
    own = load_direction(*inputs.own) if inputs.own else None
    source = original
    if settings.blocks == "own_source":
        assert own is not None, "own_source needs the compressed checkpoint's own direction"
        source = own
        if own.record.get("rule") == "relaxed_induce":
            logger.warning(
                "no candidate direction of %s induces refusal, so the site that its own_source blocks write, layer %d, "
                "is no source of it",
                inputs.base,
                own.layer,
            )
    return Directions(original, own, patch_direction(settings, original.unit, (own or original).unit), source)


def edited_modules(
    model: PreTrainedModel, source: Direction, settings: RankOneSettings, experts: bool = True
) -> tuple[list[int], list[str]]:
    """Return the indices of the blocks that a patch edits, and the full names of their writers, in order.

    The model may be its structure alone; `experts` names the parameters of experts too.

    Raises:
        ValueError: a configured block does not exist, or no matrix in the blocks can be edited.
    """
    writers = residual_writers(model)
    blocks = edited_blocks(settings, source.layer, len(writers))
    modules = [
        name for block in blocks for name in (*writers[block].names, *(writers[block].experts if experts else ()))
    ]
    if not modules:
        obstacles = [text for block in blocks for text in writers[block].obstacles]
        raise ValueError(f"nothing in blocks {blocks} can be edited: {'; '.join(obstacles)}")
    return blocks, modules


def save_edits(
    edits: Sequence[Edit],
    blocks: list[int],
    directions: Directions,
    inputs: PatchInputs,
    folder: Path,
    statistics: list[EditRecord] | None = None,
) -> PatchRecord:
    """Write the edits as an adapter into an empty folder, and return what there is to say about them.

    Without `statistics` (`edit_statistics` of each edit) the matrices are read for them.
    """
    structure = load_structure(inputs.original)
    save_adapter(edits, folder, inputs.base, structure)
    if statistics is None:
        compressed, original = (matrix_reader(each, structure) for each in (inputs.compressed, inputs.original))
        statistics = [
            edit_statistics(edit, compressed(edit.module), original(edit.module))
            if edit.rank == 1
            else size_record(edit, compressed(edit.module))
            for edit in edits
        ]
    names, writers = {edit.module for edit in edits}, residual_writers(structure)
    not_edited = [text for block in blocks for each in writers[block].contributions if (text := _left_out(each, names))]
    if not_edited:
        logger.warning("not edited: %s", "; ".join(not_edited))
    found, own = directions.original, directions.own
    sha256 = hashlib.sha256(directions.unit.double().contiguous().numpy().tobytes()).hexdigest()
    record: PatchRecord = {
        "blocks": blocks,
        "edits": statistics,
        "not_edited": not_edited,
        "direction": {"layer": found.layer, "position": found.position, "sha256": sha256},
    }
    if experts := sorted(edit.module for edit in edits if edit.of_experts):
        record["experts"] = {"target_parameters": experts}
    if own is not None:
        record["own_direction"] = {"layer": own.layer, "position": own.position, "rule": own.record.get("rule")}
    return record


def _left_out(contribution: Contribution, edited: set[str]) -> str:
    name = contribution.writer or contribution.experts
    if name is None or name in edited or contribution.obstacle:
        return contribution.obstacle
    return f"{name}: this method edits linear modules only"

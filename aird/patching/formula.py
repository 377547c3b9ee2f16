"""Make a patch by a formula of the matrices: nothing runs, and only the edited matrices are read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from aird.patching.method import PatchInputs
from aird.patching.records import EditRecord, PatchRecord
from aird.settings.patches import FormulaSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from aird.patching.edits import Edit


def make_by_formula(settings: FormulaSettings, inputs: PatchInputs, folder: Path) -> PatchRecord:
    """Write the adapter with the rows r^T (a W_c + b W_o); see `Method.make`.

    Raises:
        ValueError: a block does not exist, or shapes do not fit together.
    """
    from aird.models.loading import load_structure
    from aird.patching.rank_one import edited_modules, read_directions, save_edits

    directions, structure = read_directions(settings, inputs), load_structure(inputs.original)
    blocks, modules = edited_modules(structure, directions.source, settings)
    edits, statistics = formula_edits(settings, modules, directions.unit, inputs, structure)
    return save_edits(edits, blocks, directions, inputs, folder, statistics)


def formula_edits(
    settings: FormulaSettings,
    modules: Iterable[str],
    unit: torch.Tensor,
    inputs: PatchInputs,
    structure: PreTrainedModel,
) -> tuple[list[Edit], list[EditRecord]]:
    """Return `make_edits` of these modules, from the files of both checkpoints; unit is [d_model]."""
    from aird.models.experts import matrix_reader
    from aird.models.loading import stored_gains
    from aird.patching.edits import make_edits

    folders = inputs.compressed, inputs.original
    compressed, original = (matrix_reader(folder, structure) for folder in folders)
    return make_edits(modules, unit, compressed, original, settings, *map(stored_gains, folders))

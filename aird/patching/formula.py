"""Make a patch by a formula of the matrices: nothing runs, and only the edited matrices are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aird.patching.method import PatchInputs
from aird.settings.patches import FormulaSettings


def make_by_formula(settings: FormulaSettings, inputs: PatchInputs, folder: Path) -> dict[str, Any]:
    """Write the adapter with the rows r^T (a W_c + b W_o); see `Method.make`.

    Raises:
        ValueError: a block does not exist, or shapes do not fit together.
    """
    from aird.models.experts import matrix_reader
    from aird.models.loading import load_structure, stored_gains
    from aird.patching.edits import make_edits
    from aird.patching.rank_one import edited_modules, read_direction, save_edits

    direction, unit = read_direction(settings, inputs)
    structure = load_structure(inputs.original)
    blocks, modules = edited_modules(structure, direction, settings)
    edits, statistics = make_edits(
        modules,
        unit,
        matrix_reader(inputs.compressed, structure),
        matrix_reader(inputs.original, structure),
        settings,
        stored_gains(inputs.compressed),
        stored_gains(inputs.original),
    )
    return save_edits(edits, statistics, blocks, direction, unit, inputs, folder)

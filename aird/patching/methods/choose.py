"""A formula's row, with a strength that validation prompts choose: rule, budgets and prompts are those of `calibrate`.

So the readings of AIRD in closed form can be compared at their best strength, and with what is learnt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from aird.patching.method import TO_CHOOSE, Method, PatchInputs
from aird.patching.methods.project import Project
from aird.patching.methods.scale import Scale
from aird.patching.records import PatchRecord
from aird.settings.patches import ChoiceSettings, FormulaSettings, RankOneSettings


class Choose(RankOneSettings, ChoiceSettings):
    """The row of a formula, with a strength chosen on validation prompts by the rule and the budgets of `calibrate`."""

    method: Literal["choose"] = "choose"
    row: Literal["scale", "project"] = Field(
        "scale", description="Whose row: alpha r^T W_c of `scale`, or alpha r^T (W_o - W_c) of `project`."
    )
    strengths: list[Annotated[float, Field(gt=0)]] = Field(
        [0.5, 1.0, 2.0, 4.0],
        min_length=1,
        description="Values of alpha to choose from, as in `calibrate`.",
    )

    @property
    def formula(self) -> FormulaSettings:
        """The formula at strength 1."""
        return Scale(alpha=1.0) if self.row == "scale" else Project(alpha=1.0)


def make(settings: Choose, inputs: PatchInputs, folder: Path) -> PatchRecord:
    """Write the adapter with the rows at the chosen strength; see `Method.make`. The record says how it was chosen.

    Raises:
        ValueError: a block does not exist, or shapes do not fit together.
    """
    from aird.models.loading import load_structure
    from aird.patching.formula import formula_edits
    from aird.patching.rank_one import edited_modules, read_directions, save_edits
    from aird.patching.validation import choose_for_checkpoint

    directions, structure = read_directions(settings, inputs), load_structure(inputs.compressed)
    blocks, modules = edited_modules(structure, directions.source, settings)
    rows, _ = formula_edits(settings.formula, modules, directions.unit, inputs, structure)
    choice = choose_for_checkpoint(inputs, rows, min(blocks), settings)
    edits = [edit.scaled(choice["strength"]) for edit in rows]
    return {**save_edits(edits, blocks, directions, inputs, folder), "calibration": choice}


METHOD = Method(
    settings=Choose,
    summary="the row of `scale` or `project`, with a strength chosen on validation prompts by the rule of `calibrate`",
    make=make,
    needs=TO_CHOOSE | {"direction"},
    sizes=lambda directions, replies: replies.sizes,
    memory_mb=6000,
    minutes=60,
)

"""A formula's row, with a strength that validation prompts choose: rule, budgets and prompts are those of `calibrate`.

So the readings of AIRD in closed form can be compared at their best strength, and with what is learnt.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from aird.patching.method import Method, PatchInputs
from aird.patching.methods.calibrate import Calibrate
from aird.patching.methods.project import Project
from aird.patching.methods.scale import Scale
from aird.settings.patches import FormulaSettings, RankOneSettings, Replies

logger = logging.getLogger(__name__)


class Choose(RankOneSettings):
    """The row of a formula, with a strength chosen on validation prompts by the rule and the budgets of `calibrate`."""

    method: Literal["choose"] = "choose"
    row: Literal["scale", "project"] = Field(
        "scale", description="Whose row: alpha r^T W_c of `scale`, or alpha r^T (W_o - W_c) of `project`."
    )
    strengths: list[Annotated[float, Field(gt=0)]] = Field(
        [0.5, 1.0, 2.0, 4.0],
        min_length=1,
        description="Values of alpha to try, in this order, as of `calibrate`: until one keeps its default budgets and "
        "refuses as much as the original. A checkpoint that refuses as much anyway is left alone (strength 0).",
    )

    @property
    def formula(self) -> FormulaSettings:
        """The formula at strength 1."""
        return Scale() if self.row == "scale" else Project()


def make(settings: Choose, inputs: PatchInputs, folder: Path) -> dict[str, Any]:
    """Write the adapter with the rows at the chosen strength; see `Method.make`. The record says how it was chosen.

    Raises:
        ValueError: a block does not exist, or shapes do not fit together.
    """
    from dataclasses import replace
    from functools import partial

    from aird.models.loading import load_model, load_tokenizer
    from aird.models.matrices import dense_matrix
    from aird.patching.calibration import Validation, choice_record, choose_strength, needs_repair
    from aird.patching.edits import edit_statistics
    from aird.patching.formula import formula_edits
    from aird.patching.rank_one import edited_modules, read_direction, read_source, save_edits
    from aird.patching.replies import original_replies, record_replies, reply_instructions

    counts, rule = Replies.model_validate(inputs.sizes), Calibrate()
    direction, unit = read_direction(settings, inputs)
    replies = original_replies(inputs.original, inputs.prompts, counts, inputs.seed, inputs.replies)
    harmful, harmless = replies["validation_harmful"], replies["validation_harmless"]
    tokenizer, model = load_tokenizer(inputs.compressed), load_model(inputs.compressed)
    blocks, modules = edited_modules(model, read_source(settings, inputs), settings)
    edits, _ = formula_edits(settings.formula, modules, unit, inputs)
    loss = needs_repair(model, tokenizer, harmful, counts.judged_tokens, rule.significance)
    if loss.repair:
        own = reply_instructions(inputs.prompts, [("validation", "harmless")], counts, inputs.seed)
        kept = record_replies(model, tokenizer, own, counts)["validation_harmless"]
        validation = Validation(harmful, harmless, kept, rule.over_refusal_budget, rule.kl_budget)
        edits, choice = choose_strength(
            model, tokenizer, edits, min(blocks), validation, counts.judged_tokens, settings.strengths
        )
    else:
        logger.info("refusal is not lost (p = %.3f): the checkpoint is left alone", loss.p_value)
        edits = [replace(edit, row=0 * edit.row) for edit in edits]
        choice = choice_record(harmful, harmless, 0.0, [])
    choice["unpatched"] = {"refusal": loss.refusal, "p_value": loss.p_value}
    compressed, original = (partial(dense_matrix, place) for place in (inputs.compressed, inputs.original))
    statistics = [edit_statistics(edit, compressed(edit.module), original(edit.module)) for edit in edits]
    record = save_edits(edits, statistics, blocks, direction, unit, inputs, folder)
    return {**record, "calibration": choice}


METHOD = Method(
    settings=Choose,
    summary="the row of `scale` or `project`, with a strength chosen on validation prompts by the rule of `calibrate`",
    make=make,
    needs=frozenset({"original", "compressed", "direction", "prompts", "replies", "arithmetic"}),
    sizes=lambda directions, replies: replies.model_dump(),
    memory_mb=6000,
    minutes=60,
)

"""Fit the rows on the direction prompts (aird/patching/fitting.py): both models run, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from aird.patching.method import Method, PatchInputs
from aird.settings.patches import StrengthSettings


class Fit(StrengthSettings):
    """Fit the row by ridge regression on the direction prompts, so that along r the original's output comes back.

    An `alpha` above 1 moves harmful prompts further away from harmless ones than the original did.
    """

    method: Literal["fit"] = "fit"
    ridge: float = Field(0.01, gt=0, description="Penalty on the row, relative to its inputs' mean square.")


def make(settings: Fit, inputs: PatchInputs, folder: Path) -> dict[str, Any]:
    """Write the adapter with the fitted rows; see `Method.make`.

    Raises:
        ValueError: a block does not exist, or shapes do not fit together.
    """
    from aird.models.loading import load_model, load_tokenizer
    from aird.models.matrices import dense_matrix
    from aird.patching.edits import edit_statistics
    from aird.patching.fitting import fit_edits, wanted_projections
    from aird.patching.rank_one import edited_modules, read_direction, read_source, save_edits
    from aird.prompts.chat import chat_tokens

    direction, unit = read_direction(settings, inputs)
    source = read_source(settings, inputs)
    tokenizer = load_tokenizer(inputs.original)
    harmful, harmless = (
        [chat_tokens(tokenizer, text) for text in inputs.instructions(kind)] for kind in ("harmful", "harmless")
    )
    wanted = wanted_projections(inputs.original, tokenizer, harmful, harmless, unit, source, settings, settings.alpha)
    model = load_model(inputs.compressed)
    blocks, _ = edited_modules(model, source, settings, experts=False)
    edits = fit_edits(model, [*harmful, *harmless], wanted, unit, blocks, settings.ridge)
    folders = (inputs.compressed, inputs.original)
    statistics = [edit_statistics(edit, *(dense_matrix(place, edit.module) for place in folders)) for edit in edits]
    return save_edits(edits, statistics, blocks, direction, unit, inputs, folder)


METHOD = Method(
    settings=Fit,
    summary="ridge regression on harmful and harmless instructions, module by module, so that the compressed model "
    "writes along the direction what the original wrote",
    make=make,
    needs=frozenset({"original", "compressed", "direction", "prompts", "arithmetic"}),
    sizes=lambda directions, replies: {"train": directions.train},
    memory_mb=6000,
    minutes=60,
)

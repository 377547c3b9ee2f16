"""Fit the rows on the direction prompts (aird/patching/fitting.py): both models run, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from aird.patching.method import Method, PatchInputs
from aird.patching.records import PatchRecord
from aird.settings.patches import RIDGE, StrengthSettings


class Fit(StrengthSettings):
    """Fit the row by ridge regression on the direction prompts, so that along r the original's output comes back.

    An `alpha` above 1 moves harmful prompts further away from harmless ones than the original did.
    """

    method: Literal["fit"] = "fit"
    ridge: float = Field(RIDGE, gt=0, description="Penalty on the row, relative to its inputs' mean square.")


def make(settings: Fit, inputs: PatchInputs, folder: Path) -> PatchRecord:
    """Write the adapter with the fitted rows; see `Method.make`.

    Raises:
        ValueError: a block does not exist, or shapes do not fit together.
    """
    from aird.models.loading import load_model, load_tokenizer
    from aird.patching.fitting import fit_edits, wanted_projections
    from aird.patching.rank_one import edited_modules, read_directions, save_edits
    from aird.prompts.chat import chat_tokens

    directions, tokenizer = read_directions(settings, inputs), load_tokenizer(inputs.original)
    harmful, harmless = (
        [chat_tokens(tokenizer, text) for text in inputs.instructions(kind)] for kind in ("harmful", "harmless")
    )
    # The original is not kept: one model is in memory at a time.
    wanted = wanted_projections(
        load_model(inputs.original), tokenizer, harmful, harmless, directions, settings, settings.alpha
    )
    model = load_model(inputs.compressed)
    blocks, _ = edited_modules(model, directions.source, settings, experts=False)
    edits = fit_edits(model, [*harmful, *harmless], wanted, directions.unit, blocks, settings.ridge)
    return save_edits(edits, blocks, directions, inputs, folder)


METHOD = Method(
    settings=Fit,
    summary="ridge regression on harmful and harmless instructions, module by module, so that the compressed model "
    "writes along the direction what the original wrote",
    title="the fitted patch",
    make=make,
    trained=True,
    needs=frozenset({"original", "compressed", "direction", "prompts", "arithmetic"}),
    sizes=lambda directions, replies: {"train": directions.train},
    memory_mb=6000,
    minutes=60,
)

"""Learn the rows from the original's replies, and choose their strength (aird/patching/calibration.py)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from aird.patching.method import Method, PatchInputs
from aird.settings.patches import RankOneSettings, Replies

logger = logging.getLogger(__name__)

WARM_PROMPTS = 64  # of each kind, for the closed form that learning may begin with: more change little


class Calibrate(RankOneSettings):
    """Learn the rows from the original's refusals, and choose their strength on validation prompts."""

    method: Literal["calibrate"] = "calibrate"
    blocks: Literal["source", "upper", "all"] | list[int] = Field("upper", description="Blocks to edit, as of `scale`.")
    epochs: int = Field(8, ge=1, description="Passes over the training prompts.")
    learning_rate: float = Field(
        0.08, gt=0, description="First step of Adam, relative to the root mean square of r^T W_c."
    )
    warm_start: float | None = Field(
        None,
        gt=0,
        description="Begin with the rows that `fit` finds with this `alpha`, on 64 prompts of each kind, and not with "
        "zeros; fewer epochs are then enough.",
    )
    strengths: list[Annotated[float, Field(gt=0, le=4)]] = Field(
        [1.0, 0.8, 1.2, 0.6, 1.4, 0.4],
        min_length=1,
        description="Multiples of the learnt rows to try, in this order, until one keeps all budgets and refuses "
        "as much as the original; stronger ones than one beyond the budgets are left out, weaker ones than one within.",
    )
    over_refusal_budget: float = Field(
        0.02, ge=0, lt=1, description="How far over-refusal may lie above the original's on validation prompts."
    )
    kl_budget: float = Field(
        0.2,
        gt=0,
        description="How far harmless replies on validation prompts may move from the unpatched checkpoint's own, mean "
        "KL divergence of a next token in nats.",
    )
    # Generous: to miss a damage is worse than to repair what had none.
    significance: float = Field(
        0.2,
        gt=0,
        le=1,
        description="A checkpoint is left alone (strength 0) unless it refuses fewer harmful validation prompts than "
        "the original, with at most this p-value (McNemar, exact, two-sided); 1 calibrates in any case.",
    )


def make(settings: Calibrate, inputs: PatchInputs, folder: Path) -> dict[str, Any]:
    """Write the adapter with the learnt rows; see `Method.make`. The record says how the strength was chosen.

    A checkpoint that has not lost refusal on the validation prompts gets rows of zeros, which change nothing. Of the
    original only the edited matrices are read, unless the settings ask for a warm start, for which it runs once.

    Raises:
        ValueError: the original refuses no training prompt, a block does not exist, or the loss is not finite.
    """
    from functools import cache

    from aird.models.experts import matrix_reader
    from aird.models.loading import load_model, load_tokenizer
    from aird.models.structure import writer_gains
    from aird.patching.calibration import Validation, choice_record, choose_strength, learn_rows, needs_repair
    from aird.patching.edits import edit_along, edit_statistics, no_row
    from aird.patching.fitting import fit_edits, wanted_projections
    from aird.patching.methods.fit import Fit
    from aird.patching.rank_one import edited_modules, read_direction, save_edits
    from aird.patching.replies import OF_COMPRESSED, original_replies, record_replies, reply_instructions
    from aird.prompts.chat import chat_tokens

    counts = Replies.model_validate(inputs.sizes)
    direction, unit = read_direction(settings, inputs)
    replies = original_replies(inputs.original, inputs.prompts, counts, inputs.seed, inputs.replies)
    refused = [index for index, flag in enumerate(replies["train_harmful"].refused) if flag]
    if not refused:
        raise ValueError(
            "the original refuses none of the harmful training prompts, so there is nothing to learn: "
            "leave this patch out of the model's `patches`, or give the model a `refusal_tuning`"
        )
    tokenizer = load_tokenizer(inputs.compressed)
    own = reply_instructions(inputs.prompts, OF_COMPRESSED, counts, inputs.seed)
    warm: list[list[list[int]]] = []
    if settings.warm_start is not None:
        warm = [
            [replies["train_harmful"].prompts[index] for index in refused[:WARM_PROMPTS]],
            [chat_tokens(tokenizer, text) for text in own["train", "harmless"][:WARM_PROMPTS]],
        ]
        wanted = wanted_projections(
            inputs.original, tokenizer, warm[0], warm[1], unit, direction, settings, settings.warm_start
        )
    model = load_model(inputs.compressed)
    blocks, modules = edited_modules(model, direction, settings)
    matrix, of_original = cache(matrix_reader(inputs.compressed, model)), matrix_reader(inputs.original, model)
    harmful, harmless = replies["validation_harmful"], replies["validation_harmless"]
    loss = needs_repair(model, tokenizer, harmful, counts.judged_tokens, settings.significance)
    if loss.repair:
        kept = record_replies(model, tokenizer, own, counts)
        train = [replies["train_harmful"].chosen(refused), kept["train_harmless"]]
        start = fit_edits(model, [*warm[0], *warm[1]], wanted, unit, blocks, Fit().ridge) if warm else []
        learning = settings.epochs, settings.learning_rate
        learnt = learn_rows(model, modules, unit, min(blocks), matrix, train, *learning, inputs.seed, start)
        budgets = settings.over_refusal_budget, settings.kl_budget
        validation = Validation(harmful, harmless, kept["validation_harmless"], *budgets)
        edits, choice = choose_strength(
            model, tokenizer, learnt, min(blocks), validation, counts.judged_tokens, settings.strengths
        )
    else:
        logger.info("refusal is not lost (p = %.3f): the checkpoint is left alone", loss.p_value)
        gains = writer_gains(model)
        edits = [edit_along(each, unit, no_row(matrix(each)), gains.get(each)) for each in modules]
        choice = choice_record(harmful, harmless, 0.0, [])
    choice["unpatched"] = {"refusal": loss.refusal, "p_value": loss.p_value}
    statistics = [edit_statistics(edit, matrix(edit.module), of_original(edit.module)) for edit in edits]
    record = save_edits(edits, statistics, blocks, direction, unit, inputs, folder)
    return {**record, "calibration": choice}


METHOD = Method(
    settings=Calibrate,
    summary="rows learnt from the original's replies (KL divergence of the next token), with a strength chosen on "
    "validation prompts",
    make=make,
    needs=frozenset({"original", "compressed", "direction", "prompts", "replies", "arithmetic"}),
    sizes=lambda directions, replies: replies.model_dump(),
    memory_mb=6000,
    minutes=60,
)

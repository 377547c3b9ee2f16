"""A calibrated patch (aird/patching/calibration.py): the compressed model learns from the original's replies."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from aird.directions.direction import Direction
from aird.models.loading import load_model, load_tokenizer
from aird.models.matrices import dense_matrix
from aird.models.structure import writer_gains
from aird.patching.calibration import Validation, choice_record, choose_strength, learn_rows, needs_repair
from aird.patching.edits import edit_along, edit_statistics
from aird.patching.fitted_patch import wanted_projections
from aird.patching.fitting import fit_edits
from aird.patching.formula import Patched, edited_modules, patch_record, patch_unit
from aird.patching.replies import OF_COMPRESSED, OF_ORIGINAL, ReplySet, record_replies, reply_instructions
from aird.prompts.chat import chat_tokens
from aird.settings.patches import Calibrate, Fit, Replies

logger = logging.getLogger(__name__)

WARM_PROMPTS = 64  # of each kind, for the closed form that learning may begin with: more change little

Records = Mapping[str, Sequence[dict[str, Any]]]  # kind -> prompt records


def original_replies(original: Path, records: Records, sizes: Replies, seed: int) -> dict[str, ReplySet]:
    """Run the original over the direction prompts and return its replies.

    Args:
        original: the checkpoint folder.
        records: kind to prompt records with `split` and `instruction`.
        sizes: how many prompts and tokens.
        seed: of the draw of prompts.
    """
    instructions = reply_instructions(records, OF_ORIGINAL, sizes, seed)
    return record_replies(load_model(original), load_tokenizer(original), instructions, sizes)


def calibrate_patch(
    original: Path,
    compressed: Path,
    direction: Direction,
    own: Direction | None,
    replies: Mapping[str, ReplySet],
    records: Records,
    sizes: Replies,
    settings: Calibrate,
    seed: int,
) -> Patched:
    """Return the edits of a calibrated patch, and its record with the choice of the strength.

    A checkpoint that has not lost refusal on the validation prompts gets rows of zeros, which change nothing.

    Args:
        original, compressed: checkpoint folders; of the original only the edited matrices are read, unless the
            settings ask for a warm start, for which it runs once.
        direction: the original's refusal direction.
        own: the compressed checkpoint's direction; needed where the settings ask for it.
        replies: the original's, from `original_replies`.
        records: kind to prompt records with `split` and `instruction`, the same as for these.
        sizes: how the replies were recorded.
        settings: the patch.
        seed: of the order of the prompts.

    Raises:
        ValueError: the original refuses no training prompt, a block does not exist, or the loss is not finite.
    """
    unit = patch_unit(direction, own, settings)
    refused = [index for index, flag in enumerate(replies["train_harmful"].refused) if flag]
    if not refused:
        raise ValueError(
            "the original refuses none of the harmful training prompts, so there is nothing to learn: "
            "leave this patch out of the model's `patches`, or give the model a `refusal_tuning`"
        )
    tokenizer = load_tokenizer(compressed)
    warm: list[list[list[int]]] = []
    if settings.warm_start is not None:
        texts = reply_instructions(records, [("train", "harmless")], sizes, seed)["train", "harmless"]
        warm = [
            [replies["train_harmful"].prompts[index] for index in refused[:WARM_PROMPTS]],
            [chat_tokens(tokenizer, text) for text in texts[:WARM_PROMPTS]],
        ]
        wanted = wanted_projections(
            original, tokenizer, warm[0], warm[1], unit, direction, settings, settings.warm_start
        )
    model = load_model(compressed)
    blocks, modules = edited_modules(model, direction, settings)
    matrix = cache(partial(dense_matrix, compressed))
    harmful, harmless = replies["validation_harmful"], replies["validation_harmless"]
    loss = needs_repair(model, tokenizer, harmful, sizes.judged_tokens, settings.significance)
    if loss.repair:
        kept = record_replies(model, tokenizer, reply_instructions(records, OF_COMPRESSED, sizes, seed), sizes)
        train = [replies["train_harmful"].chosen(refused), kept["train_harmless"]]
        start = fit_edits(model, [*warm[0], *warm[1]], wanted, unit, blocks, Fit().ridge) if warm else []
        learnt = learn_rows(model, modules, unit, min(blocks), matrix, train, settings, seed, start)
        validation = Validation(harmful, harmless, kept["validation_harmless"])
        edits, choice = choose_strength(
            model, tokenizer, learnt, min(blocks), validation, sizes.judged_tokens, settings
        )
    else:
        logger.info("refusal is not lost (p = %.3f): the checkpoint is left alone", loss.p_value)
        gains = writer_gains(model)
        edits = [edit_along(each, unit, torch.zeros(matrix(each).shape[1]), gains.get(each)) for each in modules]
        choice = choice_record(harmful, harmless, 0.0, [])
    choice["unpatched"] = {"refusal": loss.refusal, "p_value": loss.p_value}
    statistics = [edit_statistics(edit, matrix(edit.module), dense_matrix(original, edit.module)) for edit in edits]
    return edits, {**patch_record(blocks, statistics, settings, direction, unit), "calibration": choice}

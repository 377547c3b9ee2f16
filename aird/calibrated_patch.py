"""A calibrated patch (aird/calibration.py): the compressed model learns from the original's recorded replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from aird.architecture import residual_writers
from aird.calibration import choose_strength, learn_rows
from aird.compression.matrices import dense_matrix
from aird.directions import Direction
from aird.edits import edit_statistics, edited_blocks
from aird.models import load_model, load_tokenizer
from aird.patching import Patched, patch_record, patch_unit
from aird.references import KINDS, ReplySet, record_replies, reply_instructions
from aird.settings.patches import Calibrate, Replies


def read_replies(
    original: Path, records: Mapping[str, Sequence[dict[str, Any]]], sizes: Replies, seed: int
) -> tuple[Any, dict[str, ReplySet]]:
    """Run the original over the direction prompts; return its tokenizer and its replies.

    Args:
        original: the checkpoint folder.
        records: kind to prompt records with `split` and `instruction`.
        sizes: how many prompts and tokens.
        seed: of the draw of prompts.
    """
    tokenizer = load_tokenizer(original)
    instructions = reply_instructions(records, sizes, seed)
    return tokenizer, record_replies(load_model(original), tokenizer, instructions, sizes)


def calibrate_patch(
    original: Path,
    compressed: Path,
    tokenizer: Any,
    direction: Direction,
    own: Direction | None,
    replies: Mapping[str, ReplySet],
    sizes: Replies,
    settings: Calibrate,
    seed: int,
) -> Patched:
    """Return the edits of a calibrated patch, and its record with the choice of the strength.

    Args:
        original, compressed: checkpoint folders; of the original only the edited matrices are read.
        tokenizer: of the original.
        direction: the original's refusal direction.
        own: the compressed checkpoint's direction; needed where the settings ask for it.
        replies: "split_kind" to the original's replies.
        sizes: how the replies were recorded.
        settings: the patch.
        seed: of the order of the prompts.

    Raises:
        ValueError: a block does not exist, or the loss is not finite.
    """
    unit = patch_unit(direction, own, settings)
    model = load_model(compressed)
    writers = residual_writers(model)
    blocks = edited_blocks(settings, direction.layer, len(writers))
    modules = [name for block in blocks for name in writers[block].names]
    matrix = cache(partial(dense_matrix, compressed))
    train = [replies[f"train_{kind}"] for kind in KINDS]
    learnt = learn_rows(model, modules, unit, min(blocks), matrix, train, settings, seed)
    validation = {kind: replies[f"validation_{kind}"] for kind in KINDS}
    edits, choice = choose_strength(model, tokenizer, learnt, min(blocks), validation, sizes.judged_tokens, settings)
    statistics = [edit_statistics(edit, matrix(edit.module), dense_matrix(original, edit.module)) for edit in edits]
    return edits, {**patch_record(blocks, statistics, settings, direction, unit), "calibration": choice}

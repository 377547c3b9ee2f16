"""A patch whose rows are fitted on instructions (aird/fitting.py): both models run, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aird.chat import chat_tokens, post_instruction_tokens
from aird.compression.matrices import dense_matrix
from aird.directions import Direction
from aird.edits import edit_statistics
from aird.fitting import fit_edits, record_projections, targets
from aird.models import load_model, load_tokenizer
from aird.patching import Patched, edited_modules, patch_record, patch_unit
from aird.settings.patches import Fit


def fit_patch(
    original: Path,
    compressed: Path,
    direction: Direction,
    own: Direction | None,
    harmful: Sequence[str],
    harmless: Sequence[str],
    settings: Fit,
) -> Patched:
    """Return the edits of a patch that is fitted on instructions (`fit`), and its record.

    Args:
        original, compressed: checkpoint folders.
        direction: the original's refusal direction.
        own: the compressed checkpoint's direction; needed where the settings ask for it.
        harmful, harmless: instructions.
        settings: the patch.

    Raises:
        ValueError: a block does not exist, or shapes do not fit together.
    """
    unit = patch_unit(direction, own, settings)
    tokenizer = load_tokenizer(original)
    positions = len(post_instruction_tokens(tokenizer))
    prompts = [chat_tokens(tokenizer, instruction) for instruction in (*harmful, *harmless)]
    is_harmful = [True] * len(harmful) + [False] * len(harmless)
    model = load_model(original)
    blocks, modules = edited_modules(model, direction, settings)
    wanted = targets(record_projections(model, prompts, positions, unit, modules), is_harmful, settings.alpha)
    del model  # one model in memory at a time
    edits = fit_edits(load_model(compressed), prompts, wanted, unit, blocks, settings.ridge)
    folders = (compressed, original)
    statistics = [edit_statistics(edit, *(dense_matrix(folder, edit.module) for folder in folders)) for edit in edits]
    return edits, patch_record(blocks, statistics, settings, direction, unit)

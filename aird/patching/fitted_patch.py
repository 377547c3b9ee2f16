"""A patch whose rows are fitted on instructions (aird/patching/fitting.py): both models run, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aird.directions.direction import Direction
from aird.models.loading import load_model, load_tokenizer
from aird.models.matrices import dense_matrix
from aird.patching.edits import edit_statistics
from aird.patching.fitting import Projections, fit_edits, record_projections, targets
from aird.patching.formula import Patched, edited_modules, patch_record, patch_unit
from aird.prompts.chat import chat_tokens, post_instruction_tokens
from aird.settings.patches import Fit, RankOneSettings


def wanted_projections(
    original: Path,
    tokenizer: Any,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    unit: torch.Tensor,
    direction: Direction,
    settings: RankOneSettings,
    alpha: float,
) -> Projections:
    """Run the original and return what the edited modules should write along the direction.

    The original is not kept: one model is in memory at a time.

    Args:
        original: checkpoint folder.
        tokenizer: of that checkpoint.
        harmful, harmless: token ids of templated prompts; n of them together, in this order.
        unit: [d_model] unit direction.
        direction: the original's refusal direction.
        settings: which blocks are edited.
        alpha: how far harmful prompts are moved away from harmless ones (`aird.patching.fitting.targets`).

    Returns:
        module -> [n, P] float64, P the number of post-instruction tokens.
    """
    model = load_model(original)
    _, modules = edited_modules(model, direction, settings)
    positions = len(post_instruction_tokens(tokenizer))
    written = record_projections(model, [*harmful, *harmless], positions, unit, modules)
    return targets(written, [True] * len(harmful) + [False] * len(harmless), alpha)


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
    prompts = [[chat_tokens(tokenizer, text) for text in texts] for texts in (harmful, harmless)]
    wanted = wanted_projections(original, tokenizer, prompts[0], prompts[1], unit, direction, settings, settings.alpha)
    model = load_model(compressed)
    blocks, _ = edited_modules(model, direction, settings)
    edits = fit_edits(model, [*prompts[0], *prompts[1]], wanted, unit, blocks, settings.ridge)
    folders = (compressed, original)
    statistics = [edit_statistics(edit, *(dense_matrix(folder, edit.module) for folder in folders)) for edit in edits]
    return edits, patch_record(blocks, statistics, settings, direction, unit)

"""The repair that a user would reach for first: an ordinary LoRA, tuned on refusals (the baseline `lora`).

The same kind of examples as of the refusal tuning (aird/models/tuning.py): harmful instructions with short
refusals, harmless ones with the compressed model's own answers. The base stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aird.models.loading import load_model, load_tokenizer
from aird.models.matrices import dense_matrix
from aird.models.tuning import train, tuning_examples, with_lora
from aird.patching.adapters import load_adapter, save_lora
from aird.settings.patches import LoRA


def tune_lora(
    compressed: Path, harmful: Sequence[str], harmless: Sequence[str], settings: LoRA, folder: Path, base: str
) -> dict[str, Any]:
    """Tune a LoRA adapter of the compressed checkpoint and write it into `folder`.

    Args:
        compressed: checkpoint folder.
        harmful, harmless: training instructions.
        settings: rank, epochs, learning rate and so on.
        folder: an existing, empty folder.
        base: name of the checkpoint, for the adapter's record.

    Returns:
        what else to say about it: the relative change of each matrix, numbers of examples, mean loss of
        each epoch (nats per answer token).
    """
    torch.manual_seed(settings.seed)
    tokenizer, model = load_tokenizer(compressed), load_model(compressed, dtype=torch.float32)
    examples = tuning_examples(model, tokenizer, harmful, harmless, settings)
    tuned = with_lora(model, settings)
    losses = train(tuned, examples, settings)
    save_lora(tuned, folder, base)
    edits = [
        {
            "module": update.module,
            "relative_change": (update.matrix().norm() / dense_matrix(compressed, update.module).float().norm()).item(),
            "row_norm_before": None,
            "row_norm_after": None,
        }
        for update in load_adapter(folder)
    ]
    return {
        "edits": edits,
        "examples": {"harmful": len(harmful), "harmless": len(examples) - len(harmful)},
        "epoch_losses": losses,
    }

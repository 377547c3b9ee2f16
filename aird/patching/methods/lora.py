"""The repair that a user would reach for first: an ordinary LoRA, tuned on refusals. A baseline.

The same kind of examples as of the refusal tuning (aird/models/tuning.py): harmful instructions with short
refusals, harmless ones with the compressed model's own answers. The base stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from aird.patching.method import Method, PatchInputs
from aird.patching.records import PatchRecord
from aird.prompts.sets import CLASSES
from aird.settings.patches import ChoiceSettings
from aird.settings.tuning import TuningSettings


class LoRA(ChoiceSettings, TuningSettings):
    """Baseline: an ordinary LoRA adapter, tuned on refusals and on the compressed model's own harmless answers."""

    method: Literal["lora"] = "lora"


def make(settings: LoRA, inputs: PatchInputs, folder: Path) -> PatchRecord:
    """Tune a LoRA adapter of the compressed checkpoint and write it; see `Method.make`.

    The record has the relative change of each matrix, the numbers of examples, and the mean loss of each epoch (nats
    per answer token); with `strengths` also how the adapter's strength was chosen.
    """
    import torch

    from aird.models.dense import model_with_gradients
    from aird.models.loading import load_tokenizer
    from aird.models.matrices import dense_matrix
    from aird.models.tuning import train, tuning_examples, with_lora
    from aird.patching.adapters import load_adapter, save_lora, scale_adapter
    from aird.patching.edits import size_record
    from aird.patching.validation import choose_for_checkpoint

    torch.manual_seed(settings.seed)
    harmful, harmless = inputs.instructions("harmful"), inputs.instructions("harmless")
    tokenizer = load_tokenizer(inputs.compressed)
    with model_with_gradients(inputs.compressed, folder, dtype=torch.float32) as model:
        examples = tuning_examples(model, tokenizer, harmful, harmless, settings)
        tuned = with_lora(model, settings)
        losses = train(tuned, examples, settings)
    save_lora(tuned, folder, inputs.base)
    # One model is in memory at a time.
    del tuned, model
    record: PatchRecord = {
        "examples": {"harmful": len(harmful), "harmless": len(examples) - len(harmful)},
        "epoch_losses": losses,
    }
    if settings.strengths is not None:
        choice = choose_for_checkpoint(inputs, load_adapter(folder), settings.first_block, settings)
        scale_adapter(folder, choice["strength"])
        record["calibration"] = choice
    record["edits"] = [size_record(edit, dense_matrix(inputs.compressed, edit.module)) for edit in load_adapter(folder)]
    return record


METHOD = Method(
    settings=LoRA,
    summary="an ordinary LoRA tuned on refusals and on the compressed model's own harmless answers: a baseline",
    title="the LoRA",
    make=make,
    trained=True,
    baseline=True,
    needs=frozenset({"compressed", "prompts"}),
    # As many harmful ones as a calibration sees.
    sizes=lambda directions, replies: {"train": replies.train_harmful},
    trains_on=dict.fromkeys(CLASSES, "train_harmful"),
    usage="{loading}",
    memory_mb=8000,
    minutes=120,
)

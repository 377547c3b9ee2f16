"""Undo the largest part of what compression did to every matrix, in closed form (aird/patching/compensation.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from aird.patching.method import TO_CHOOSE, Method, PatchInputs
from aird.patching.records import PatchRecord
from aird.settings.patches import ChoiceSettings


class Compensate(ChoiceSettings):
    """Compensate the error of each matrix by a change of low rank, weighted by the covariance of its inputs."""

    method: Literal["compensate"] = "compensate"
    rank: int = Field(8, ge=1, description="Rank of the change of each matrix.")
    modules: list[str] | None = Field(
        None,
        min_length=1,
        description="Last parts of module names, such as [o_proj, down_proj]; default: all linear ones.",
    )
    strengths: list[Annotated[float, Field(gt=0, le=4)]] = Field(
        [0.4, 0.55, 0.7, 0.85, 1.0],
        min_length=1,
        description="Multiples of the change to choose from, as in `calibrate`.",
    )


def make(settings: Compensate, inputs: PatchInputs, folder: Path) -> PatchRecord:
    """Write the adapter at the chosen strength; see `Method.make`. The record says how the error of each matrix lies.

    Inputs are those of the harmful and harmless training prompts, with the replies of the original and of the
    compressed checkpoint.

    Raises:
        ValueError: no module has such a name, or compression rescaled a matrix against what stands before it.
    """
    from aird.models.checkpoint import read_checkpoint
    from aird.models.experts import matrix_reader
    from aird.models.loading import load_model, load_structure, load_tokenizer
    from aird.patching.adapters import save_adapter
    from aird.patching.compensation import compensations
    from aird.patching.edits import size_record
    from aird.patching.replies import original_replies, record_replies, reply_instructions
    from aird.patching.token_shares import token_shares
    from aird.patching.validation import choose_for_checkpoint

    structure = load_structure(inputs.compressed)
    linear = read_checkpoint(inputs.compressed).block_matrices()
    modules = [name for name in linear if settings.modules is None or name.rpartition(".")[2] in settings.modules]
    if not modules:
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(f"no matrix of the blocks is called {settings.modules}; write some of {', '.join(known)}")
    counts = inputs.replies_sizes()
    wanted = [("train", "harmful")]
    asked = original_replies(inputs.original, inputs.prompts, counts, inputs.seed, inputs.replies, wanted)
    model, tokenizer = load_model(inputs.compressed), load_tokenizer(inputs.compressed)
    harmless = reply_instructions(inputs.prompts, [("train", "harmless")], counts, inputs.seed)
    answered = record_replies(model, tokenizer, harmless, counts)["train_harmless"]
    sets = [asked["train_harmful"], answered]
    prompts = [sequence for each in sets for sequence in each.sequences]
    originals, stored = matrix_reader(inputs.original, structure), matrix_reader(inputs.compressed, structure)
    made = compensations(model, prompts, modules, originals, stored, settings.rank)
    erring = {each.edit.module: each.edit.down[0] for each in made if each.shares[0] > 0}
    tokens = token_shares(model, tokenizer, sets, erring)
    del model  # one is in memory at a time
    choice = choose_for_checkpoint(inputs, [each.edit for each in made], 0, settings)
    edits = [each.edit.scaled(choice["strength"]) for each in made]
    save_adapter(edits, folder, inputs.base, structure)
    return {
        "edits": [size_record(edit, stored(edit.module)) for edit in edits],
        "compensation": {
            each.edit.module: {"left": each.left, "shares": each.shares, "tokens": tokens.get(each.edit.module, [])}
            for each in made
        },
        "calibration": choice,
    }


METHOD = Method(
    settings=Compensate,
    summary="undoes the largest part of what compression did to each matrix, in closed form, without gradients and "
    "without a refusal direction",
    make=make,
    needs=TO_CHOOSE,
    sizes=lambda directions, replies: replies.sizes,
    trains_on={"harmless": "train_harmless"},
    usage="{loading}",
    compensates=True,
    memory_mb=8000,
    minutes=60,
)

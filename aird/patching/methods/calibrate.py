"""Learn the rows from the original's replies (aird/patching/calibration.py), and choose their strength."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from aird.patching.method import TO_CHOOSE, Method, PatchInputs
from aird.patching.records import PatchRecord
from aird.plugin import ATTACKS
from aird.settings.base import Name, Settings
from aird.settings.patches import RIDGE, Blocks, ChoiceSettings, RankOneSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from aird.patching.calibration import OneModel
    from aird.patching.edits import Edit
    from aird.patching.fitting import Projections
    from aird.patching.rank_one import Directions
    from aird.patching.replies import ReplySet

logger = logging.getLogger(__name__)

WARM_PROMPTS = 64  # of each kind, for the closed form that learning may begin with: more change little


class LearntAttacks(Settings):
    """Attacks that a calibration learns from as well: what the original refuses under them is to be refused again."""

    suite: Name = Field(description="The suite whose attacks they are.")
    names: list[Name] = Field(
        min_length=1,
        description="Which of its attacks; the others stay held out.",
    )
    count: int = Field(64, ge=1, description="Harmful training prompts that each is put on.")


class Calibrate(RankOneSettings, ChoiceSettings):
    """Learn the rows from the original's replies, and choose their strength on validation prompts."""

    method: Literal["calibrate"] = "calibrate"
    direction: Literal["original", "own", "random", "free"] = Field(  # type: ignore[assignment]
        "original",
        description="r of the original or the compressed model, or a control: a `random` direction, or `free`, "
        "learnt columns.",
    )
    blocks: Blocks = Field("upper", description="Blocks to edit, as of `scale`.")
    rank: int = Field(
        1,
        ge=1,
        description="Rank of the change of each matrix: 1 writes along r alone; further columns are the first singular "
        "directions of the matrix's error, and begin with what `compensate` does along them.",
    )
    epochs: int = Field(8, ge=1, description="Passes over the training prompts.")
    learning_rate: float = Field(
        0.08, gt=0, description="First step of Adam, relative to the root mean square of r^T W_c."
    )
    warm_start: float | None = Field(
        None,
        gt=0,
        description="Begin with the rows of `fit` with this `alpha`; fewer epochs are then enough.",
    )
    strengths: list[Annotated[float, Field(gt=0, le=4)]] = Field(
        [0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0],
        min_length=1,
        description="Multiples of the learnt rows; the one that decides most like the original is taken "
        "([method](../docs/method.md)).",
    )
    learns: Literal["refusals", "decisions"] = Field(
        "refusals",
        description="`refusals`: the original's refusals, and the checkpoint's replies elsewhere. `decisions`: also "
        "how likely the original is to refuse each training prompt, where its first tokens tell that.",
    )
    whitening: float | None = Field(
        None,
        gt=0,
        description="Learn in whitened inputs, to whose covariance this share of its mean eigenvalue is added; inputs "
        "of experts stay as they are.",
    )
    attacks: LearntAttacks | None = Field(
        None,
        description="Learn from attacked training prompts too.",
    )

    @model_validator(mode="after")
    def _one_beginning(self) -> Calibrate:
        if self.rank > 1 and self.warm_start is not None:
            raise ValueError(
                "a rank above 1 begins with what `compensate` does, and warm_start with what `fit` does; leave one out"
            )
        return self


@dataclass(frozen=True)
class Lessons:
    """What a calibration learns from.

    Attributes:
        replies: as of `aird.patching.calibration.training_replies`.
        attacks: those that are learnt from, with the numbers of `prompts` and of those that the original `refused`.
        warm_prompts, wanted: of the closed form that learning begins with; without them it begins with zeros.
        refusal_tokens: those that the original's refusals begin with, where decisions are learnt; else none.
    """

    replies: list[ReplySet]
    attacks: dict[str, dict[str, int]]
    warm_prompts: list[list[int]]
    wanted: Projections
    refusal_tokens: tuple[int, ...]


def make(settings: Calibrate, inputs: PatchInputs, folder: Path) -> PatchRecord:
    """Write the adapter with the learnt rows; see `Method.make`. The record says how the strength was chosen.

    A checkpoint that has lost neither refusals nor answers on the validation prompts gets rows of zeros, which change
    nothing, and of the original only the edited matrices are read then. One model is in memory at a time.

    Raises:
        ValueError: the original refuses no training prompt, a block does not exist, the loss is not finite, or the
            matrices of experts are to get a rank above 1.
    """
    from functools import cache

    from aird.models.experts import matrix_reader
    from aird.models.loading import load_structure, load_tokenizer
    from aird.patching.calibration import OneModel, compensated, edits_of_nothing, written_rows
    from aird.patching.edits import along_direction
    from aird.patching.rank_one import edited_modules, read_directions, save_edits
    from aird.patching.replies import original_replies
    from aird.patching.validation import choose_on_validation, validate

    directions, structure = read_directions(settings, inputs), load_structure(inputs.compressed)
    original = original_replies(inputs.original, inputs.prompts, inputs.replies_sizes(), inputs.seed, inputs.replies)
    if not any(original["train_harmful"].refused):
        raise ValueError(
            "the original refuses none of the harmful training prompts, so there is nothing to learn: "
            "leave this patch out of the model's `patches`, or give the model a `refusal_tuning`"
        )
    blocks, modules = edited_modules(structure, directions.source, settings)
    matrices = cache(matrix_reader(inputs.compressed, structure))
    held, tokenizer = OneModel(), load_tokenizer(inputs.compressed)
    validation = validate(held.of(inputs.compressed), tokenizer, original, inputs)
    edits = edits_of_nothing(held.of(inputs.compressed), modules, directions.unit, matrices)
    lessons = None
    if validation.needs_repair(settings.significance):
        answers_lost = "answers" in validation.lost(settings.significance)
        lessons = _lessons(settings, inputs, held, tokenizer, directions, original["train_harmful"], answers_lost)
        rows = written_rows(edits, directions.unit, matrices)
        if settings.rank > 1:
            originals = matrix_reader(inputs.original, structure)
            edits = compensated(
                held.of(inputs.compressed), edits, lessons.replies, originals, matrices, settings.rank - 1
            )
        with held.with_gradients(inputs.compressed, folder) as model:
            edits = _learnt(settings, model, edits, rows, blocks, directions.unit, lessons, inputs.seed)
        del model
    choice = choose_on_validation(held.of(inputs.compressed), tokenizer, edits, min(blocks), validation, settings)
    if lessons:
        choice["learns"] = "decisions" if lessons.refusal_tokens else "refusals"
        if lessons.attacks:
            choice["attacks"] = lessons.attacks
    edits = [edit.scaled(choice["strength"]) for edit in edits]
    record = save_edits(edits, blocks, directions, inputs, folder)
    if settings.direction == "free":
        for row, edit in zip(record["edits"], edits, strict=True):
            row["cosine_with_direction"] = along_direction(edit, directions.original.unit)
    return {**record, "calibration": choice}


def _lessons(
    settings: Calibrate,
    inputs: PatchInputs,
    held: OneModel,
    tokenizer: PreTrainedTokenizerBase,
    directions: Directions,
    harmful: ReplySet,
    answers_lost: bool,
) -> Lessons:
    """Ask the checkpoint the harmless training prompts, and the original what only it can say.

    Those are the harmless prompts that the checkpoint refuses where answers were lost, all of them where decisions are
    learnt, the attacked ones, and what it writes along the direction for a warm start. `harmful` are its replies to the
    harmful training prompts.
    """
    from aird.patching.calibration import decision_replies, training_replies
    from aird.patching.fitting import wanted_projections
    from aird.patching.replies import record_replies, record_set, refusal_tokens, reply_instructions

    counts = inputs.replies_sizes()
    instructions = reply_instructions(inputs.prompts, [("train", "harmless")], counts, inputs.seed)
    own = record_replies(held.of(inputs.compressed), tokenizer, instructions, counts)["train_harmless"]
    asked, attacked, wanted = None, {}, {}
    decided: list[ReplySet] = []
    tokens: tuple[int, ...] = ()
    if settings.learns == "decisions":
        now = record_set(held.of(inputs.compressed), tokenizer, harmful.prompts, counts)
        before = record_set(held.of(inputs.original), tokenizer, own.prompts, counts)
        tokens = refusal_tokens(harmful, before)
        if not tokens:
            logger.warning("no first token tells the original's refusals, so refusals are learnt, and no decisions")
        decided = decision_replies(harmful, now, tokens) + decision_replies(before, own, tokens)
    if answers_lost and any(own.refused) and not tokens:
        lost = own.refusals().prompts
        asked = record_set(held.of(inputs.original), tokenizer, lost, counts)
    if settings.attacks:
        attacked = _attacked_replies(held.of(inputs.original), tokenizer, settings.attacks.count, inputs)
    refused, others = harmful.refusals().prompts[:WARM_PROMPTS], own.prompts[:WARM_PROMPTS]
    if settings.warm_start is not None:
        wanted = wanted_projections(
            held.of(inputs.original), tokenizer, refused, others, directions, settings, settings.warm_start
        )
    said = {name: {"prompts": len(each.refused), "refused": sum(each.refused)} for name, each in attacked.items()}
    if tokens:
        refusals = [each.refusals() for each in attacked.values()]
        replies = decided + [replace(each, decisions=each.beginning(tokens)) for each in refusals if each.prompts]
    else:
        replies = training_replies(harmful, own, asked, list(attacked.values()))
    return Lessons(replies, said, [*refused, *others], wanted, tokens)


def _attacked_replies(
    original: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, inputs: PatchInputs
) -> dict[str, ReplySet]:
    """Return the original's replies to `count` harmful training prompts under each attack, by the attacks' names."""
    from aird.patching.calibration import attacked_prompts
    from aird.patching.replies import record_set

    counts = inputs.replies_sizes()
    attacks = {name: (ATTACKS.parse(values), text) for name, (values, text) in inputs.attacks.items()}
    asked = attacked_prompts(tokenizer, attacks, inputs.prompts["harmful"], counts.train_harmful, count, inputs.seed)
    replies = {}
    for name, prompts in asked.items():
        replies[name] = record_set(original, tokenizer, prompts, counts)
        refused = sum(replies[name].refused)
        nothing = "" if refused else ", so nothing is learnt from it"
        logger.info("attack %s: the original refuses %d of %d training prompts%s", name, refused, len(prompts), nothing)
    return replies


def _learnt(
    settings: Calibrate,
    model: PreTrainedModel,
    start: Sequence[Edit],
    rows: Sequence[torch.Tensor],
    blocks: Sequence[int],
    unit: torch.Tensor,
    lessons: Lessons,
    seed: int,
) -> list[Edit]:
    """Return what learning makes of edits; with a warm start it begins with the closed form of linear modules."""
    from aird.patching.calibration import Learning, learn_edits
    from aird.patching.fitting import fit_edits

    how = Learning(
        settings.epochs,
        settings.learning_rate,
        seed,
        settings.direction == "free",
        by_token=bool(lessons.attacks),
        whitening=settings.whitening,
        refusal_tokens=lessons.refusal_tokens,
    )
    if lessons.wanted:
        fitted = fit_edits(model, lessons.warm_prompts, lessons.wanted, unit, blocks, RIDGE)
        known = {edit.module: edit for edit in fitted}
        start = [known.get(edit.module, edit) for edit in start]
    return learn_edits(model, start, rows, min(blocks), lessons.replies, how)


METHOD = Method(
    settings=Calibrate,
    summary="rows learnt from the original's replies (KL divergence of the next token), with a strength chosen on "
    "validation prompts",
    title="the calibrated patch",
    make=make,
    trained=True,
    default=True,
    needs=TO_CHOOSE | {"direction"},
    sizes=lambda directions, replies: replies.sizes,
    trains_on={"harmless": "train_harmless"},
    memory_mb=6000,
    minutes=60,
)

"""Learn the rows from the original's replies (aird/patching/calibration.py), and choose their strength."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from aird.patching.method import TO_CHOOSE, Method, PatchInputs
from aird.plugin import ATTACKS
from aird.settings.base import Name, Settings
from aird.settings.patches import Blocks, ChoiceSettings, RankOneSettings

logger = logging.getLogger(__name__)

WARM_PROMPTS = 64  # of each kind, for the closed form that learning may begin with: more change little


class LearntAttacks(Settings):
    """Attacks that a calibration learns from as well: what the original refuses under them is to be refused again."""

    suite: Name = Field(description="The suite whose attacks they are.")
    names: list[Name] = Field(
        min_length=1,
        description="Which of its attacks, of one turn and with a text that all checkpoints share; "
        "those that are not named stay held out.",
    )
    count: int = Field(
        64, ge=1, description="How many of the harmful training prompts (`replies.train_harmful`) each is put on."
    )


class Calibrate(RankOneSettings, ChoiceSettings):
    """Learn the rows from the original's replies, and choose their strength on validation prompts."""

    method: Literal["calibrate"] = "calibrate"
    direction: Literal["original", "own", "random", "free"] = Field(  # type: ignore[assignment]
        "original",
        description="r of the original model, of the compressed model, or a random control; `free` is a control as "
        "well: every column is learnt, like its row, and all begin with one and the same random vector.",
    )
    blocks: Blocks = Field("upper", description="Blocks to edit, as of `scale`.")
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
        [0.4, 0.55, 0.7, 0.85, 1.0, 1.2, 1.4],
        min_length=1,
        description="Multiples of the learnt rows of which the weakest is taken that is as good as the original on "
        "validation prompts, by bisection.",
    )
    attacks: LearntAttacks | None = Field(
        None,
        # A patch without them stays what it was.
        exclude_if=lambda value: value is None,
        description="Learn from attacked training prompts as well, where the original refuses them; default: from "
        "plain ones only.",
    )


def make(settings: Calibrate, inputs: PatchInputs, folder: Path) -> dict[str, Any]:
    """Write the adapter with the learnt rows; see `Method.make`. The record says how the strength was chosen.

    A checkpoint that has lost neither refusals nor answers on the validation prompts gets rows of zeros, which change
    nothing. Of the original only the edited matrices are read, unless the settings ask for a warm start, or answers
    were lost or attacks are learnt from: then it is asked the harmless training prompts that the checkpoint refuses,
    and the attacked ones. Of each attack the record says how many prompts were asked and refused.

    Raises:
        ValueError: the original refuses no training prompt, a block does not exist, or the loss is not finite.
    """
    from functools import cache

    from aird.models.dense import model_with_gradients, passes_gradients
    from aird.models.experts import matrix_reader
    from aird.models.loading import load_model, load_tokenizer
    from aird.models.structure import writer_gains
    from aird.patching.calibration import learn_edits, training_replies
    from aird.patching.edited import scaled
    from aird.patching.edits import Edit, along_direction, edit_along, edit_statistics, no_row
    from aird.patching.fitting import fit_edits, wanted_projections
    from aird.patching.methods.fit import Fit
    from aird.patching.rank_one import edited_modules, read_direction, read_source, save_edits
    from aird.patching.replies import original_replies, record_replies, reply_instructions
    from aird.patching.validation import choose_on_validation, validate
    from aird.prompts.chat import chat_tokens

    counts = inputs.replies_sizes()
    direction, unit = read_direction(settings, inputs)
    source = read_source(settings, inputs)
    original = original_replies(inputs.original, inputs.prompts, counts, inputs.seed, inputs.replies)
    refused = [index for index, flag in enumerate(original["train_harmful"].refused) if flag]
    if not refused:
        raise ValueError(
            "the original refuses none of the harmful training prompts, so there is nothing to learn: "
            "leave this patch out of the model's `patches`, or give the model a `refusal_tuning`"
        )
    tokenizer = load_tokenizer(inputs.compressed)
    harmless = {
        split: reply_instructions(inputs.prompts, [(split, "harmless")], counts, inputs.seed)
        for split in ("train", "validation")
    }
    warm: list[list[list[int]]] = []
    if settings.warm_start is not None:
        warm = [
            [original["train_harmful"].prompts[index] for index in refused[:WARM_PROMPTS]],
            [chat_tokens(tokenizer, text) for text in harmless["train"]["train", "harmless"][:WARM_PROMPTS]],
        ]
        wanted = wanted_projections(
            inputs.original, tokenizer, warm[0], warm[1], unit, source, settings, settings.warm_start
        )
    model = load_model(inputs.compressed)
    blocks, modules = edited_modules(model, source, settings)
    matrix, of_original = cache(matrix_reader(inputs.compressed, model)), matrix_reader(inputs.original, model)
    answers = record_replies(model, tokenizer, harmless["validation"], counts)["validation_harmless"]
    validation = validate(model, tokenizer, original, answers, counts.judged)
    attacked: dict[str, Any] = {}
    if validation.needs_repair(settings.significance):
        own = record_replies(model, tokenizer, harmless["train"], counts)["train_harmless"]
        asked = None
        answers_lost = "answers" in validation.lost(settings.significance) and any(own.refused)
        if answers_lost or settings.attacks:
            del model  # one is in memory at a time
            reference = load_model(inputs.original)
            if answers_lost:
                texts = harmless["train"]["train", "harmless"]
                refused_now = {("train", "harmless"): [text for text, no in zip(texts, own.refused, strict=True) if no]}
                asked = record_replies(reference, tokenizer, refused_now, counts)["train_harmless"]
            if settings.attacks:
                attacked = _attacked_replies(reference, tokenizer, settings.attacks.count, inputs)
            del reference
            model = load_model(inputs.compressed)
        train = training_replies(original["train_harmful"], own, asked, list(attacked.values()))

        def learn(learner: Any) -> list[Edit]:
            start = fit_edits(learner, [*warm[0], *warm[1]], wanted, unit, blocks, Fit().ridge) if warm else []
            learning = settings.epochs, settings.learning_rate, inputs.seed, start, settings.direction == "free"
            return learn_edits(learner, modules, unit, min(blocks), matrix, train, *learning, by_token=bool(attacked))

        if passes_gradients(inputs.compressed):
            learnt = learn(model)
        else:
            del model
            with model_with_gradients(inputs.compressed, folder) as dense:
                learnt = learn(dense)
            del dense
            model = load_model(inputs.compressed)  # the strength is chosen on the checkpoint as it is
    else:
        gains = writer_gains(model)
        learnt = [edit_along(each, unit, no_row(matrix(each)), gains.get(each)) for each in modules]
    choice = choose_on_validation(model, tokenizer, learnt, min(blocks), validation, settings)
    if attacked:
        flags = {name: replies.refused for name, replies in attacked.items()}
        choice["attacks"] = {name: {"prompts": len(each), "refused": sum(each)} for name, each in flags.items()}
    edits = [scaled(edit, choice["strength"]) for edit in learnt]
    statistics = [edit_statistics(edit, matrix(edit.module), of_original(edit.module)) for edit in edits]
    if settings.direction == "free":
        for row, edit in zip(statistics, edits, strict=True):
            row["cosine_with_direction"] = along_direction(edit, direction.unit)
    record = save_edits(edits, statistics, blocks, direction, unit, inputs, folder)
    return {**record, "calibration": choice}


def _attacked_replies(reference: Any, tokenizer: Any, count: int, inputs: PatchInputs) -> dict[str, Any]:
    """Return the original's replies to `count` harmful training prompts under each attack, by the attacks' names."""
    from aird.patching.calibration import attacked_prompts
    from aird.patching.replies import record_set

    counts = inputs.replies_sizes()
    attacks = {name: (ATTACKS.parse(values), text) for name, (values, text) in inputs.attacks.items()}
    asked = attacked_prompts(tokenizer, attacks, inputs.prompts["harmful"], counts.train_harmful, count, inputs.seed)
    replies = {}
    for name, prompts in asked.items():
        replies[name] = record_set(reference, tokenizer, prompts, counts.tokens, counts.judged)
        refused = sum(replies[name].refused)
        nothing = "" if refused else ", so nothing is learnt from it"
        logger.info("attack %s: the original refuses %d of %d training prompts%s", name, refused, len(prompts), nothing)
    return replies


METHOD = Method(
    settings=Calibrate,
    summary="rows learnt from the original's replies (KL divergence of the next token), with a strength chosen on "
    "validation prompts",
    make=make,
    needs=TO_CHOOSE | {"direction"},
    sizes=lambda directions, replies: replies.model_dump(),
    trains_on={"harmless": "train_harmless"},
    memory_mb=6000,
    minutes=60,
)

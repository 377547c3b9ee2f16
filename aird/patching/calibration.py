"""Learn rank-1 edits from the original's replies.

Every edit adds r (A x) to the output of a module that writes to the residual stream
(aird/patching/edits.py). Here the rows A minimise, over the training prompts,

    KL(original || patched)            for harmful prompts that the original refuses, plain ones and, where a patch is
                                       calibrated on attacks, attacked ones; and, where answers were lost, for
                                       harmless ones that it answers and the compressed checkpoint refuses;
    KL(compressed || patched)          for all other harmless prompts,

of the next token, after the prompt and after each of the first tokens of the reply that the
model on the left gives. That takes in what a patch at the prompt's last tokens alone would miss:
a damaged model may begin as a refusal does and then go on to answer. Harmless replies are to stay
what they are, so over-refusal, perplexity and utility are paid for in the loss; where compression
made a refusal of an answer, the original's answer is to come back. All columns are r, unless they are
learnt as well, as a control; nothing else of the model changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from aird.models.structure import writer_gains
from aird.patching.divergence import divergence, make_batches
from aird.patching.edits import Edit, along, edit_along, no_row, reader
from aird.patching.replies import ReplySet
from aird.prompts.attack import attack_of
from aird.prompts.chat import chat_tokens
from aird.prompts.sets import Record, select, select_instructions
from aird.settings.attacks import AttackSettings
from aird.settings.base import PromptSelection

logger = logging.getLogger(__name__)


def attacked_prompts(
    tokenizer: Any,
    attacks: Mapping[str, tuple[AttackSettings, str]],
    records: Sequence[Record],
    drawn: int,
    count: int,
    seed: int,
) -> dict[str, list[list[int]]]:
    """Return the token ids of harmful training prompts under each attack, by the attacks' names.

    Args:
        tokenizer: with the chat template.
        attacks: names to settings and text, of attacks of one turn.
        records: the harmful prompts, with `split` and `instruction`.
        drawn: how many training prompts the plain calibration draws.
        count: how many of these each attack is put on; all attacks get the same ones.
        seed: of both draws.
    """
    train = select(records, PromptSelection(set="harmful", split="train", count=drawn), seed)
    texts = select_instructions(train, PromptSelection(set="harmful", count=count), seed)
    return {
        name: [chat_tokens(tokenizer, **attack_of(attack).put_on(text, each)._asdict()) for each in texts]
        for name, (attack, text) in attacks.items()
    }


def training_replies(
    harmful: ReplySet, own: ReplySet, asked: ReplySet | None = None, attacked: Sequence[ReplySet] = ()
) -> list[ReplySet]:
    """Return what a calibration learns from.

    Args:
        harmful: the original's replies to the harmful training prompts.
        own: the compressed checkpoint's replies to the harmless ones.
        asked: the original's replies to those harmless ones that the checkpoint refuses, in their order; None where
            answers are not to come back.
        attacked: the original's replies to harmful training prompts under each attack.

    Returns:
        the original's refusals, its answers to harmless prompts that the compressed checkpoint refuses, the
        checkpoint's own replies to the other harmless prompts, and the original's refusals under each attack; parts
        without a prompt are left out.
    """
    parts = [_refusals(harmful)]
    lost: list[int] = []
    if asked is not None:
        answered = [place for place, refused in enumerate(asked.refused) if not refused]
        refused_now = [index for index, refused in enumerate(own.refused) if refused]
        lost = [refused_now[place] for place in answered]
        parts.append(asked.chosen(answered))
    parts.append(own.chosen([index for index in range(len(own.prompts)) if index not in lost]))
    parts += map(_refusals, attacked)
    return [part for part in parts if part.prompts]


def _refusals(replies: ReplySet) -> ReplySet:
    return replies.chosen([index for index, refused in enumerate(replies.refused) if refused])


def learn_edits(
    model: Any,
    modules: Sequence[str],
    unit: torch.Tensor,
    first_block: int,
    matrices: Callable[[str], torch.Tensor],
    replies: Sequence[ReplySet],
    epochs: int,
    learning_rate: float,
    seed: int,
    start: Sequence[Edit] = (),
    learn_columns: bool = False,
    by_token: bool = False,
) -> list[Edit]:
    """Return one edit per module, learnt together.

    Args:
        model: the compressed model; it is left as it was.
        modules: full names of the modules to edit, or of experts' parameters.
        unit: [d_model] unit direction; the column of every edit, divided by the gain of a norm behind the module.
            Where columns are learnt, all begin with it.
        first_block: lowest block with an edited module; what lies below runs once.
        matrices: returns a module's dense matrix [d_model, d_in], or that of every expert; it sets the row's scale.
        replies: as of `training_replies`.
        epochs: passes over the prompts.
        learning_rate: first step of Adam, relative to the root mean square of r^T W of each matrix, and of a column's
            entries.
        seed: of the order of the prompts.
        start: edits of these modules whose rows the learning begins with; without them it begins with zeros.
        learn_columns: learn each edit's column too; it comes back as a unit vector, its length in the row.
        by_token: let a pack of prompts count by its compared tokens, as where some prompts are so long that one fills
            a pack; default: all packs count alike.

    Raises:
        ValueError: the loss is not finite.
    """
    gains = writer_gains(model)
    known = {edit.module: edit.row.float().clone() for edit in start}
    rows = [known.get(module, no_row(matrices(module))).requires_grad_() for module in modules]
    readers = {module: reader(unit, gains.get(module)) for module in modules}
    scales = [along(readers[module], matrices(module)).square().mean().sqrt().item() for module in modules]
    groups = [{"params": [row], "lr": learning_rate * scale} for row, scale in zip(rows, scales, strict=True)]
    columns = [unit.float().clone().requires_grad_() for _ in modules] if learn_columns else [unit] * len(modules)
    if learn_columns:
        groups.append({"params": columns, "lr": learning_rate / len(unit) ** 0.5})
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.98))
    batches = make_batches(model, replies, first_block, seed)
    places = sum(len(batch.places) for batch in batches) / len(batches)
    weights = [len(batch.places) / places if by_token else 1.0 for batch in batches]
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(0.05, 1 - step / steps))

    def edits() -> list[Edit]:
        vectors = zip(modules, columns, rows, strict=True)
        return [edit_along(module, column, row, gains.get(module)) for module, column, row in vectors]

    for epoch in range(epochs):
        total = 0.0
        for batch, weight in zip(batches, weights, strict=True):
            loss = weight * divergence(model, batch, first_block, edits())
            loss.backward()
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            total += loss.item() / len(batches)
        logger.info("epoch %d: KL %.4f nats per token", epoch + 1, total)
        if not total < float("inf"):
            raise ValueError("the calibration diverged (its loss is not finite): lower the patch's learning_rate")
    with torch.no_grad():
        if learn_columns:
            for column, row in zip(columns, rows, strict=True):
                row.mul_(column.norm())
                column.div_(column.norm())
        return [replace(edit, row=edit.row.detach(), column=edit.column.detach()) for edit in edits()]

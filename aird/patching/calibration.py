"""Learn edits from the original's replies.

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

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from aird.models.dense import model_with_gradients, passes_gradients
from aird.models.loading import load_model
from aird.models.structure import writer_gains
from aird.patching.divergence import divergence, make_batches
from aird.patching.edits import Edit, along, contributed, edit_along, reader
from aird.patching.replies import ReplySet
from aird.prompts.attack import attack_of
from aird.prompts.chat import chat_tokens
from aird.prompts.sets import Record, select, select_instructions
from aird.settings.attacks import AttackSettings
from aird.settings.base import PromptSelection
from aird.support import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def attacked_prompts(
    tokenizer: PreTrainedTokenizerBase,
    attacks: Mapping[str, tuple[AttackSettings, str]],
    records: Sequence[Record],
    drawn: int,
    count: int,
    seed: int,
) -> dict[str, list[list[int]]]:
    """Return the token ids of harmful training prompts under each attack, by the attacks' names.

    Attacks have settings and text. Of the `drawn` training prompts of the plain calibration, all are put on the same
    `count`.
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
    parts = [harmful.refusals()]
    lost: list[int] = []
    if asked is not None:
        answered = [place for place, refused in enumerate(asked.refused) if not refused]
        refused_now = [index for index, refused in enumerate(own.refused) if refused]
        lost = [refused_now[place] for place in answered]
        parts.append(asked.chosen(answered))
    parts.append(own.chosen([index for index in range(len(own.prompts)) if index not in lost]))
    parts += [each.refusals() for each in attacked]
    return [part for part in parts if part.prompts]


class OneModel:
    """Holds the model of one checkpoint at a time, so that no two are in memory; callers keep none."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._model: PreTrainedModel | None = None

    def of(self, folder: Path) -> PreTrainedModel:
        """Return a checkpoint's model; one of another checkpoint is let go before."""
        if self._model is None or folder != self._folder:
            self._model = None
            self._model, self._folder = load_model(folder), folder
        return self._model

    @contextlib.contextmanager
    def with_gradients(self, folder: Path, scratch: Path) -> Iterator[PreTrainedModel]:
        """Yield a checkpoint as a model through which gradients pass; arguments as of `model_with_gradients`."""
        if passes_gradients(folder):
            yield self.of(folder)
        else:
            self._model = None
            with model_with_gradients(folder, scratch) as model:
                yield model


@dataclass(frozen=True)
class Learning:
    """How edits are learnt.

    Attributes:
        epochs: passes over the prompts.
        learning_rate: first step of Adam, relative to the scale of what is read, and to a unit vector's entries.
        seed: of the order of the prompts.
        columns: learn what edits write too; it comes back as unit vectors, their lengths in what is read.
        by_token: let a pack of prompts count by its compared tokens, as where some prompts are so long that one fills
            a pack; default: all packs count alike.
    """

    epochs: int
    learning_rate: float
    seed: int
    columns: bool = False
    by_token: bool = False


def edits_of_nothing(
    model: PreTrainedModel, modules: Sequence[str], unit: torch.Tensor, matrices: Callable[[str], torch.Tensor]
) -> list[Edit]:
    """Return one edit per module that writes along a unit direction [d_model] and reads nothing: rows of zeros.

    `matrices` returns a module's dense matrix [d_model, d_in], or that of every expert, as here everywhere.
    """
    gains = writer_gains(model)
    rows = {module: torch.zeros_like(matrices(module)[..., :1, :], dtype=torch.float32) for module in modules}
    return [edit_along(module, unit[:, None], row, gains.get(module)) for module, row in rows.items()]


def row_scales(edits: Sequence[Edit], unit: torch.Tensor, matrices: Callable[[str], torch.Tensor]) -> list[float]:
    """Return the root mean square of r^T W of each edited matrix, (r * g)^T W before a norm."""
    rows = (along(reader(unit, edit.gain), matrices(edit.module)) for edit in edits)
    return [row.square().mean().sqrt().item() for row in rows]


def learn_edits(
    model: PreTrainedModel,
    start: Sequence[Edit],
    scales: Sequence[float],
    first_block: int,
    replies: Sequence[ReplySet],
    how: Learning,
) -> list[Edit]:
    """Return the edits that learning makes of those that it begins with, all together.

    Args:
        model: the compressed model; it is left as it was.
        start: edits of any rank. What they read is learnt, and what they write where `how` says so.
        scales: of what each reads, such as `row_scales`; steps are relative to it.
        first_block: lowest block with an edited module; what lies below runs once.
        replies: as of `training_replies`.
        how: numbers of the learning.

    Raises:
        ValueError: the loss is not finite.
    """
    downs = [edit.down.clone().requires_grad_() for edit in start]
    ups = [contributed(edit).float().requires_grad_() for edit in start]
    groups = [{"params": [down], "lr": how.learning_rate * scale} for down, scale in zip(downs, scales, strict=True)]
    if how.columns:
        groups.append({"params": ups, "lr": how.learning_rate / len(ups[0]) ** 0.5})
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.98))
    batches = make_batches(model, replies, first_block, how.seed)
    places = sum(len(batch.places) for batch in batches) / len(batches)
    weights = [len(batch.places) / places if how.by_token else 1.0 for batch in batches]
    steps = how.epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(0.05, 1 - step / steps))

    def edits() -> list[Edit]:
        if not how.columns:
            return [replace(edit, down=down) for edit, down in zip(start, downs, strict=True)]
        factors = zip(start, ups, downs, strict=True)
        return [edit_along(edit.module, up, down, edit.gain) for edit, up, down in factors]

    weighted = list(zip(batches, weights, strict=True))
    for epoch in progress.over(range(how.epochs), "epochs"):
        total = 0.0
        for batch, weight in progress.over(weighted, "batches"):
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
        if how.columns:
            for up, down in zip(ups, downs, strict=True):
                lengths = up.norm(dim=0)
                down.mul_(lengths[:, None])
                up.div_(lengths)
        return [replace(edit, up=edit.up.detach(), down=edit.down.detach()) for edit in edits()]

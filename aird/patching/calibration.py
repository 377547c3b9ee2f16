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

Where *decisions* are learnt (aird/patching/divergence.py), all training prompts are learnt from, also harmful ones that
the original does not refuse: of each it says how likely a refusal is, and what follows is its own reply where it
refuses or the checkpoint refuses in its place, and the checkpoint's elsewhere.

Rows may be learnt in *whitened* inputs (aird/patching/whitening.py).
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
from aird.patching.compensation import compensations
from aird.patching.divergence import divergence, make_batches
from aird.patching.edits import Edit, along, contributed, edit_along, reader
from aird.patching.replies import ReplySet
from aird.patching.whitening import whitenings
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


def decision_replies(original: ReplySet, own: ReplySet, refusal_tokens: Sequence[int]) -> list[ReplySet]:
    """Return what decisions are learnt from, of the replies of both models to the same prompts.

    Those are the original's replies where it or the checkpoint refuses, and the checkpoint's `own` to the others, each
    with the probability that the original begins a refusal; parts without a prompt are left out.
    """
    decided = original.beginning(refusal_tokens)
    flags = [before or now for before, now in zip(original.refused, own.refused, strict=True)]
    parts = []
    for replies, wanted in ((original, True), (own, False)):
        places = [place for place, flag in enumerate(flags) if flag == wanted]
        parts.append(replace(replies.chosen(places), decisions=[decided[place] for place in places]))
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
        whitening: w of the inputs that the rows are learnt in; None learns them in the inputs as they are.
        refusal_tokens: those that refusals begin with, where decisions are learnt.
    """

    epochs: int
    learning_rate: float
    seed: int
    columns: bool = False
    by_token: bool = False
    whitening: float | None = None
    refusal_tokens: tuple[int, ...] = ()


def edits_of_nothing(
    model: PreTrainedModel, modules: Sequence[str], unit: torch.Tensor, matrices: Callable[[str], torch.Tensor]
) -> list[Edit]:
    """Return one edit per module that writes along a unit direction [d_model] and reads nothing: rows of zeros.

    `matrices` returns a module's dense matrix [d_model, d_in], or that of every expert, as here everywhere.
    """
    gains = writer_gains(model)
    rows = {module: torch.zeros_like(matrices(module)[..., :1, :], dtype=torch.float32) for module in modules}
    return [edit_along(module, unit[:, None], row, gains.get(module)) for module, row in rows.items()]


def compensated(
    model: PreTrainedModel,
    edits: Sequence[Edit],
    replies: Sequence[ReplySet],
    original: Callable[[str], torch.Tensor],
    compressed: Callable[[str], torch.Tensor],
    rank: int,
) -> list[Edit]:
    """Return edits that compensate their matrices besides, along `rank` further columns.

    Args:
        model: the compressed model.
        edits: of linear modules.
        replies: prompts with replies, whose inputs the error is weighted by.
        original, compressed: return a module's dense matrix [d_out, d_in] in either checkpoint.
        rank: of the compensation.

    Raises:
        ValueError: there are matrices of experts, or compression rescaled a matrix.
    """
    if experts := next((edit.module for edit in edits if edit.of_experts), None):
        raise ValueError(f"{experts}: matrices of experts get one column; write rank: 1")
    sequences = [sequence for part in replies for sequence in part.sequences]
    made = compensations(model, sequences, [edit.module for edit in edits], original, compressed, rank)
    return [
        replace(edit, up=torch.cat([edit.up, each.edit.up], 1), down=torch.cat([edit.down, each.edit.down]))
        for edit, each in zip(edits, made, strict=True)
    ]


def written_rows(
    edits: Sequence[Edit], unit: torch.Tensor, matrices: Callable[[str], torch.Tensor]
) -> list[torch.Tensor]:
    """Return r^T W of each edited matrix, (r * g)^T W before a norm, [d_in] float64; of experts, [experts, d_in]."""
    return [along(reader(unit, edit.gain), matrices(edit.module)) for edit in edits]


def learn_edits(
    model: PreTrainedModel,
    start: Sequence[Edit],
    rows: Sequence[torch.Tensor],
    first_block: int,
    replies: Sequence[ReplySet],
    how: Learning,
) -> list[Edit]:
    """Return the edits that learning makes of those that it begins with, all together.

    Args:
        model: the compressed model; it is left as it was.
        start: edits of any rank. What they read is learnt, and what they write where `how` says so.
        rows: what each module reads already, such as `written_rows`; steps are relative to their root mean square.
        first_block: lowest block with an edited module; what lies below runs once.
        replies: as of `training_replies`.
        how: numbers of the learning.

    Raises:
        ValueError: the loss is not finite.
    """
    transforms = None if how.whitening is None else whitenings(model, start, replies, how.whitening)
    if transforms is None:
        scales = [row.square().mean().sqrt().item() for row in rows]
        downs = [edit.down.clone().requires_grad_() for edit in start]
    else:
        read_now = [each.whitened(row.float()) for each, row in zip(transforms, rows, strict=True)]
        scales = [row.square().mean().sqrt().item() for row in read_now]
        downs = [each.whitened(edit.down).requires_grad_() for each, edit in zip(transforms, start, strict=True)]
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

    def read() -> list[torch.Tensor]:
        if transforms is None:
            return downs
        return [each.rows(down) for each, down in zip(transforms, downs, strict=True)]

    def edits() -> list[Edit]:
        if not how.columns:
            return [replace(edit, down=down) for edit, down in zip(start, read(), strict=True)]
        factors = zip(start, ups, read(), strict=True)
        return [edit_along(edit.module, up, down, edit.gain) for edit, up, down in factors]

    weighted = list(zip(batches, weights, strict=True))
    for epoch in progress.over(range(how.epochs), "epochs"):
        total = 0.0
        for batch, weight in progress.over(weighted, "batches"):
            loss = weight * divergence(model, batch, first_block, edits(), how.refusal_tokens)
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

"""Learn the rows of rank-1 edits from recorded replies.

Every edit adds r (A x) to the output of a module that writes to the residual stream
(aird/edits.py). Here the rows A minimise, over the training prompts,

    KL(original || patched)            for harmful prompts that the original refuses,
    KL(compressed || patched)          for harmless prompts,

of the next token, after the prompt and after each of the first tokens of the reply that the
model on the left gives. That takes in what a patch at the prompt's last tokens alone would miss:
a damaged model may begin as a refusal does and then go on to answer. Harmless replies are to stay
what they are, so over-refusal, perplexity and utility are paid for in the loss. All columns are r;
nothing else of the model changes.

Only the end of each sequence, the post-instruction tokens and the reply, runs in a step. Of the
instruction before it stand keys and values that are made anew, with the edits of that moment, in
every `REFRESH`th epoch, and no gradient goes through them. Less than half of the work, and as good
on validation prompts (docs/method.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aird.architecture import decoder_blocks
from aird.cpu_attention import decoding_attention
from aird.edits import Edit, along
from aird.fitting import all_edited
from aird.packing import pack_output
from aird.prompt_cache import KeysAndValues, as_cache, padded_places, prompt_rows
from aird.references import ReplySet
from aird.reply_divergence import Batch, divergence, divergence_of, make_batches
from aird.resuming import resumed_at
from aird.settings.patches import Calibrate

logger = logging.getLogger(__name__)

REFRESH = 5  # epochs


def learn_rows(
    model: Any,
    modules: Sequence[str],
    unit: torch.Tensor,
    first_block: int,
    matrices: Callable[[str], torch.Tensor],
    replies: Sequence[ReplySet],
    positions: int,
    settings: Calibrate,
    seed: int,
) -> list[Edit]:
    """Return one edit per module, learnt together.

    Args:
        model: the compressed model; it is left as it was.
        modules: full names of the modules to edit.
        unit: [d_model] unit direction, the column of every edit.
        first_block: lowest block with an edited module; what lies below runs once.
        matrices: returns a module's dense matrix [d_model, d_in], which sets the scale of its row.
        replies: of the original to harmful, of the compressed model to harmless training prompts.
        positions: number of post-instruction tokens.
        settings: epochs and learning rate.
        seed: of the order of the prompts.

    Raises:
        ValueError: the loss is not finite.
    """
    column = unit.float()
    rows = [torch.zeros(matrices(module).shape[1], requires_grad=True) for module in modules]
    scales = [along(unit.double(), matrices(module)).square().mean().sqrt().item() for module in modules]
    optimiser = torch.optim.Adam(
        [{"params": [row], "lr": settings.learning_rate * scale} for row, scale in zip(rows, scales, strict=True)],
        betas=(0.9, 0.98),
    )
    count = end_length(replies, positions)
    batches = make_batches(model, replies, first_block, seed, count)
    ends: list[Ends | None] = [None] * len(batches)
    steps = settings.epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(0.05, 1 - step / steps))
    edits = [Edit(module, column, row) for module, row in zip(modules, rows, strict=True)]
    for epoch in range(settings.epochs):
        total = 0.0
        for index, batch in enumerate(batches):
            if epoch % REFRESH == 0:
                ends[index] = make_ends(model, batch, first_block, edits, count)
            loss = _loss(model, batch, ends[index], first_block, edits)
            loss.backward()
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            total += loss.item() / len(batches)
        logger.info("epoch %d: KL %.4f nats per token", epoch + 1, total)
        if not total < float("inf"):
            raise ValueError("the calibration diverged (its loss is not finite): lower the patch's learning_rate")
    return [Edit(edit.module, edit.column, edit.row.detach()) for edit in edits]


def end_length(replies: Sequence[ReplySet], positions: int) -> int:
    """Return how many last tokens of each sequence run in a step: post-instruction tokens and the longest reply."""
    parts = [(prompt, reply) for each in replies for prompt, reply in zip(each.prompts, each.replies, strict=True)]
    longest = max(len(reply) for _, reply in parts)
    return min(positions + longest, *(len(prompt) + len(reply) for prompt, reply in parts))


@dataclass(frozen=True)
class Ends:
    """The ends of a batch's n sequences, each of `count` tokens, and what they see of all before them.

    Attributes:
        states: [n, count, d_model], input of the first edited block.
        token_ids, position_ids: [n, count] int64.
        mask: [n, 1, count, width + count], additive, in the model's type.
        before: keys and values of the tokens before the ends, of the edited block and all above it.
        columns: [c] int64, the tokens of an end after which a next token is compared in any of the sequences.
        compared: [n, c] bool, those of each sequence.
    """

    states: torch.Tensor
    token_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    before: KeysAndValues
    columns: torch.Tensor
    compared: torch.Tensor


@torch.no_grad()
def make_ends(model: Any, batch: Batch, first_block: int, edits: Sequence[Edit], count: int) -> Ends | None:
    """Run a batch with the edits, and return its ends on the keys and values of what stands before them.

    None where the model's keys and values are no plain list; its sequences have to run whole.
    """
    pack, blocks = batch.pack, list(decoder_blocks(model))
    width = max(pack.prefix_length + own for own in _own_lengths(batch)) - count
    with resumed_at(blocks, first_block, batch.states), all_edited(model, edits):
        output = pack_output(model, pack, use_cache=True, logits_to_keep=1)
    before = prompt_rows(output, pack, width, first_block, count)
    if before is None:
        return None
    places = pack.last_tokens(count)
    seen = torch.ones(count, count, dtype=torch.bool).tril().expand(len(places), -1, -1)
    real = (padded_places(pack, width, count) >= 0)[:, None].expand(-1, count, -1)
    hidden = ~torch.cat([real, seen], dim=2)[:, None]
    mask = torch.zeros(hidden.shape, dtype=model.dtype).masked_fill(hidden, torch.finfo(model.dtype).min)
    compared = torch.isin(places, batch.places)
    columns = compared.any(dim=0).nonzero().flatten()
    device = model.device
    return Ends(
        batch.states[0, places.to(batch.states.device)],
        pack.token_ids[places].to(device),
        pack.position_ids[places].to(device),
        mask.to(device),
        before,
        columns.to(device),
        compared[:, columns].to(device),
    )


def end_logits(model: Any, ends: Ends, first_block: int, edits: Sequence[Edit]) -> torch.Tensor:
    """Return the logits of the compared tokens, [m, vocabulary], sequence by sequence."""
    blocks, count = list(decoder_blocks(model)), ends.token_ids.shape[1]
    with (
        resumed_at(blocks, first_block, ends.states),
        all_edited(model, edits),
        decoding_attention(model, count),
    ):
        logits: torch.Tensor = model(
            input_ids=ends.token_ids,
            position_ids=ends.position_ids,
            attention_mask=ends.mask,
            past_key_values=as_cache(ends.before, first_block),
            use_cache=True,
            logits_to_keep=ends.columns,
        ).logits
    return logits[ends.compared]


def _loss(model: Any, batch: Batch, ends: Ends | None, first_block: int, edits: Sequence[Edit]) -> torch.Tensor:
    if ends is None:
        return divergence(model, batch, first_block, edits)
    return divergence_of(end_logits(model, ends, first_block, edits), batch)


def _own_lengths(batch: Batch) -> list[int]:
    ends = batch.pack.ends.tolist()
    starts = [batch.pack.prefix_length, *(end + 1 for end in ends[:-1])]
    return [end + 1 - start for start, end in zip(starts, ends, strict=True)]

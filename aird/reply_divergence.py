"""How far a model with edits is from recorded replies: KL(recorded || with the edits) of the next tokens.

Compared is the next token after the prompt and after each token of its recorded reply
(aird/references.py). The sequences run in packs, from the first edited block on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aird.architecture import decoder_blocks
from aird.edits import Edit
from aird.fitting import all_edited
from aird.packing import Pack, plan_packs, run_pack
from aird.references import ReplySet, reply_places
from aird.resuming import block_input, resumed_at

PACK_TOKENS = 320  # one optimiser step; attention costs the square of a pack's length
LEAST_PROBABILITY = 1e-6  # of all tokens together that are not kept, so that its logarithm stays finite


@dataclass(frozen=True)
class Batch:
    """Prompts with their replies in one pack.

    Attributes:
        pack: the sequences.
        states: [1, tokens, d_model], input of the first edited block.
        places: [m] int64, tokens of the pack whose next token is compared, sequence by sequence.
        top_tokens: [m, TOP] int64, the recorded likeliest next tokens.
        top_log_probabilities: [m, TOP] float32, theirs, nats.
    """

    pack: Pack
    states: torch.Tensor
    places: torch.Tensor
    top_tokens: torch.Tensor
    top_log_probabilities: torch.Tensor


@torch.no_grad()
def make_batches(
    model: Any, replies: Sequence[ReplySet], first_block: int, seed: int | None, own_tokens: int = 1
) -> list[Batch]:
    """Return the prompts with their replies in packs, each with the input of block `first_block`.

    Args:
        model: the compressed model.
        replies: sets of prompts and replies, put together.
        first_block: where the packs resume.
        seed: of the order of the prompts; None keeps it.
        own_tokens: at least so many last tokens of each sequence stay outside the packs' shared prefix.
    """
    sequences = [prompt + reply for part in replies for prompt, reply in zip(part.prompts, part.replies, strict=True)]
    lengths = [len(reply) for part in replies for reply in part.replies]
    tokens = torch.cat([part.top_tokens for part in replies])
    known = torch.cat([part.top_log_probabilities for part in replies])
    order = list(range(len(sequences)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    blocks = list(decoder_blocks(model))
    batches = []
    shuffled, shuffled_lengths = [sequences[index] for index in order], [lengths[index] for index in order]
    for pack in plan_packs(model, shuffled, PACK_TOKENS, own_tokens=max(own_tokens, max(lengths) + 1)):
        kept = [(order[index], shuffled_lengths[index] + 1) for index in pack.prompts]
        batches.append(
            Batch(
                pack,
                block_input(model, blocks, pack, first_block),
                reply_places(pack, shuffled_lengths),
                torch.cat([tokens[index, :count] for index, count in kept]).to(model.device),
                torch.cat([known[index, :count] for index, count in kept]).to(model.device),
            )
        )
    return batches


def divergence(model: Any, batch: Batch, first_block: int, edits: Sequence[Edit]) -> torch.Tensor:
    """Return the mean KL(recorded || model with the edits) of a batch's next tokens, nats."""
    blocks = list(decoder_blocks(model))
    with resumed_at(blocks, first_block, batch.states), all_edited(model, edits):
        logits = run_pack(model, batch.pack, logits_to_keep=batch.places.to(model.device))[0]
    return divergence_of(logits, batch)


def divergence_of(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the mean KL(recorded || found) of a batch's next tokens, nats.

    The tokens that were not kept of the recorded distributions count as one.

    Args:
        logits: [m, vocabulary], found at the places of the batch.
        batch: what was recorded.
    """
    found = logits.float().log_softmax(-1).gather(-1, batch.top_tokens)
    expected = batch.top_log_probabilities
    rest_expected = (1 - expected.exp().sum(-1)).clamp_min(LEAST_PROBABILITY)
    rest_found = (1 - found.exp().sum(-1)).clamp_min(LEAST_PROBABILITY)
    kept = (expected.exp() * (expected - found)).sum(-1)
    return (kept + rest_expected * (rest_expected.log() - rest_found.log())).mean()

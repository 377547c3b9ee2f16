"""How far a model with edits is from the replies that it is compared with: the loss of a calibration, and its measure.

    KL(model that replied || model with the edits)

of the next token, after a prompt and after each of the first tokens of its reply.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from aird.inference.packing import Pack, plan_packs, run_pack
from aird.inference.resuming import block_input, resumed_at
from aird.models.blocks import decoder_blocks
from aird.patching.edited import edited
from aird.patching.edits import Edit
from aird.patching.replies import ReplySet, reply_places

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACK_TOKENS = 320  # one optimiser step; attention costs the square of a pack's length
LEAST_PROBABILITY = 1e-6  # of all tokens together that are not kept, so that its logarithm stays finite


@dataclass(frozen=True)
class Batch:
    """Prompts with their replies in one pack.

    Attributes:
        pack: the sequences.
        states: [1, tokens, d_model], input of the first edited block.
        places: [m], tokens whose next token is compared.
        top_tokens: [m, TOP].
        top_log_probabilities: [m, TOP], nats.
    """

    pack: Pack
    states: torch.Tensor
    places: torch.Tensor
    top_tokens: torch.Tensor
    top_log_probabilities: torch.Tensor


@torch.no_grad()
def make_batches(
    model: PreTrainedModel, replies: Sequence[ReplySet], first_block: int, seed: int | None
) -> list[Batch]:
    """Return the prompts with their replies in packs, each with the input of block `first_block`.

    Args:
        model: the compressed model.
        replies: sets of prompts and replies, put together.
        first_block: where the packs resume.
        seed: of the order of the prompts; None keeps it.
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
    sequences, lengths = [sequences[index] for index in order], [lengths[index] for index in order]
    for pack in plan_packs(model, sequences, PACK_TOKENS, own_tokens=max(lengths) + 1):
        kept = [(order[index], lengths[index] + 1) for index in pack.prompts]
        batches.append(
            Batch(
                pack,
                block_input(model, blocks, pack, first_block),
                reply_places(pack, lengths),
                torch.cat([tokens[index, :count] for index, count in kept]).to(model.device),
                torch.cat([known[index, :count] for index, count in kept]).to(model.device),
            )
        )
    return batches


def divergence(model: PreTrainedModel, batch: Batch, first_block: int, edits: Sequence[Edit]) -> torch.Tensor:
    """Return the mean KL(model that replied || model with the edits) of a batch's next tokens, nats.

    The tokens that were not kept of its distributions count as one.
    """
    blocks = list(decoder_blocks(model))
    with resumed_at(blocks, first_block, batch.states), edited(model, edits):
        logits = run_pack(model, batch.pack, logits_to_keep=batch.places.to(model.device))[0]
    patched = logits.float().log_softmax(-1).gather(-1, batch.top_tokens)
    expected = batch.top_log_probabilities
    rest_expected = (1 - expected.exp().sum(-1)).clamp_min(LEAST_PROBABILITY)
    rest_patched = (1 - patched.exp().sum(-1)).clamp_min(LEAST_PROBABILITY)
    kept = (expected.exp() * (expected - patched)).sum(-1)
    return (kept + rest_expected * (rest_expected.log() - rest_patched.log())).mean()


@torch.no_grad()
def mean_divergence(model: PreTrainedModel, batches: Sequence[Batch], first_block: int, edits: Sequence[Edit]) -> float:
    """Return the mean over all next tokens of all batches, nats; arguments as of `divergence`."""
    sums = [divergence(model, batch, first_block, edits).item() * len(batch.places) for batch in batches]
    return sum(sums) / sum(len(batch.places) for batch in batches)

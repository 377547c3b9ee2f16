"""How far a model with edits is from the replies that it is compared with: the loss of a calibration, and its measure.

    KL(model that replied || model with the edits)

of the next token, after a prompt and after each of the first tokens of its reply.

Where *decisions* are learnt, the token behind the prompt counts in parts. With R the probability that it begins a
refusal, o the original, c the model that replied and p the model with the edits,

    DECISION * KL(R_o || R_p) + (1 - R_o) * KL(c || p, among the tokens that begin no refusal):

whether to refuse comes from the original, also where it is in doubt, and what else is said from the reply. How far
decisions lie apart is the mean of KL(R_o || R_p).
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
# How many times a decision counts: it is one of the seven tokens that are compared by default, and all depend on it.
DECISION = 3.0


@dataclass(frozen=True)
class Batch:
    """Prompts with their replies in one pack.

    Attributes:
        pack: the sequences.
        states: [1, tokens, d_model], input of the first edited block.
        places: [m], tokens whose next token is compared.
        top_tokens: [m, TOP].
        top_log_probabilities: [m, TOP], nats.
        starts: [prompts] int64, which of the places are the prompts' last tokens.
        decisions: [prompts], R_o; None where no decision is learnt.
    """

    pack: Pack
    states: torch.Tensor
    places: torch.Tensor
    top_tokens: torch.Tensor
    top_log_probabilities: torch.Tensor
    starts: torch.Tensor
    decisions: torch.Tensor | None


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
    sequences = [sequence for part in replies for sequence in part.sequences]
    lengths = [len(reply) for part in replies for reply in part.replies]
    tokens = torch.cat([part.top_tokens for part in replies])
    known = torch.cat([part.top_log_probabilities for part in replies])
    told = [value for part in replies for value in part.decisions or ()]
    decisions = torch.tensor(told).clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
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
                torch.tensor([0, *(count for _, count in kept[:-1])]).cumsum(0).to(model.device),
                decisions[[index for index, _ in kept]].to(model.device) if told else None,
            )
        )
    return batches


def divergence(
    model: PreTrainedModel,
    batch: Batch,
    first_block: int,
    edits: Sequence[Edit],
    refusal_tokens: Sequence[int] = (),
) -> torch.Tensor:
    """Return the mean KL(model that replied || model with the edits) of a batch's next tokens, nats.

    The tokens that were not kept of its distributions count as one. With `refusal_tokens`, those that refusals begin
    with, decisions are learnt: see the top of this module.
    """
    log_probabilities = _next_tokens(model, batch, first_block, edits)
    patched = log_probabilities.gather(-1, batch.top_tokens)
    expected = batch.top_log_probabilities
    rest_expected = (1 - expected.exp().sum(-1)).clamp_min(LEAST_PROBABILITY)
    rest_patched = (1 - patched.exp().sum(-1)).clamp_min(LEAST_PROBABILITY)
    kept = (expected.exp() * (expected - patched)).sum(-1)
    each = kept + rest_expected * (rest_expected.log() - rest_patched.log())
    if not refusal_tokens:
        return each.mean()
    later = torch.ones_like(each, dtype=torch.bool)
    later[batch.starts] = False
    first = _decisions(batch, log_probabilities[batch.starts], patched[batch.starts], refusal_tokens)
    return (first.sum() + each[later].sum()) / len(each)


def _next_tokens(model: PreTrainedModel, batch: Batch, first_block: int, edits: Sequence[Edit]) -> torch.Tensor:
    """Return the log-probabilities of a batch's next tokens, [m, vocabulary] float32, nats."""
    blocks = list(decoder_blocks(model))
    with resumed_at(blocks, first_block, batch.states), edited(model, edits):
        return run_pack(model, batch.pack, logits_to_keep=batch.places.to(model.device))[0].float().log_softmax(-1)


def _decisions(
    batch: Batch, log_probabilities: torch.Tensor, patched: torch.Tensor, refusal_tokens: Sequence[int]
) -> torch.Tensor:
    """Return the loss of the tokens behind the prompts, [prompts].

    Args:
        batch: with decisions.
        log_probabilities: of the model with the edits, [prompts, vocabulary].
        patched: the same of the tokens that were kept, [prompts, TOP].
        refusal_tokens: those that refusals begin with.
    """
    assert batch.decisions is not None
    wanted = batch.decisions
    decision, answering = _decision(wanted, log_probabilities, refusal_tokens)
    begins = torch.isin(batch.top_tokens[batch.starts], torch.tensor(list(refusal_tokens), device=wanted.device))
    said = batch.top_log_probabilities[batch.starts].masked_fill(begins, -torch.inf).log_softmax(-1)
    among = said.exp() * (said.masked_fill(begins, 0.0) - (patched - answering[:, None]))
    return DECISION * decision + (1 - wanted) * among.sum(-1)


def _decision(
    wanted: torch.Tensor, log_probabilities: torch.Tensor, refusal_tokens: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return KL(R_o || R_p) of prompts and log(1 - R_p), each [prompts], nats; `wanted` is R_o."""
    refusing = log_probabilities[:, list(refusal_tokens)].logsumexp(-1).clamp_max(-LEAST_PROBABILITY)
    answering = torch.log1p(-refusing.exp())
    return wanted * (wanted.log() - refusing) + (1 - wanted) * ((1 - wanted).log() - answering), answering


@torch.no_grad()
def decision_divergence(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    first_block: int,
    edits: Sequence[Edit],
    refusal_tokens: Sequence[int],
) -> float:
    """Return the mean KL(R_o || R_p) over the prompts of batches with decisions, nats; arguments as of `divergence`."""
    found: list[float] = []
    for batch in batches:
        assert batch.decisions is not None
        log_probabilities = _next_tokens(model, batch, first_block, edits)[batch.starts]
        found += _decision(batch.decisions, log_probabilities, refusal_tokens)[0].tolist()
    return sum(found) / len(found)


@torch.no_grad()
def mean_divergence(model: PreTrainedModel, batches: Sequence[Batch], first_block: int, edits: Sequence[Edit]) -> float:
    """Return the mean over all next tokens of all batches, nats; arguments as of `divergence`."""
    sums = [divergence(model, batch, first_block, edits).item() * len(batch.places) for batch in batches]
    return sum(sums) / sum(len(batch.places) for batch in batches)

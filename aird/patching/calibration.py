"""Learn the rows of rank-1 edits from the original's refusals, and choose their strength on prompts not learnt from.

Every edit adds r (A x) to the output of a module that writes to the residual stream
(aird/patching/edits.py). Here the rows A minimise, over the training prompts,

    KL(original || patched)            for harmful prompts that the original refuses,
    KL(compressed || patched)          for harmless prompts,

of the next token, after the prompt and after each of the first tokens of the reply that the
model on the left gives. That takes in what a patch at the prompt's last tokens alone would miss:
a damaged model may begin as a refusal does and then go on to answer. Harmless replies are to stay
what they are, so over-refusal, perplexity and utility are paid for in the loss. All columns are r;
nothing else of the model changes.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from aird.inference.generation import generate
from aird.inference.packing import Pack, plan_packs, run_pack
from aird.inference.refusals import jailbroken_arditi
from aird.inference.resuming import block_input, resumed_at
from aird.models.structure import decoder_blocks, writer_gains
from aird.patching.edits import Edit, along, edit_along, no_row, reader
from aird.patching.fitting import all_edited
from aird.patching.replies import ReplySet, reply_places
from aird.support.statistics import mcnemar

logger = logging.getLogger(__name__)

PACK_TOKENS = 320  # one optimiser step; attention costs the square of a pack's length
LEAST_PROBABILITY = 1e-6  # of all tokens together that are not kept, so that its logarithm stays finite


@dataclass(frozen=True)
class Validation:
    """What a strength is chosen by.

    Attributes:
        harmful, harmless: the original's replies to validation prompts.
        own: the compressed checkpoint's replies to the harmless ones.
        over_refusal_budget: how far over-refusal may lie above the original's.
        kl_budget: how far harmless replies may move from its own, mean KL divergence of a next token, nats.
    """

    harmful: ReplySet
    harmless: ReplySet
    own: ReplySet
    over_refusal_budget: float
    kl_budget: float


@dataclass(frozen=True)
class Loss:
    """What compression did to refusal, on validation prompts.

    Attributes:
        refusal: share of the harmful prompts that the unpatched checkpoint refuses.
        p_value: of the paired difference from the original (McNemar, exact, two-sided).
        repair: whether the checkpoint is to be repaired.
    """

    refusal: float
    p_value: float
    repair: bool


@dataclass(frozen=True)
class _Batch:
    pack: Pack
    states: torch.Tensor  # [1, tokens, d_model], input of the first edited block
    places: torch.Tensor  # [m], tokens whose next token is compared
    top_tokens: torch.Tensor  # [m, TOP]
    top_log_probabilities: torch.Tensor  # [m, TOP], nats


def learn_rows(
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
) -> list[Edit]:
    """Return one edit per module, learnt together.

    Args:
        model: the compressed model; it is left as it was.
        modules: full names of the modules to edit, or of experts' parameters.
        unit: [d_model] unit direction; the column of every edit, divided by the gain of a norm behind the module.
        first_block: lowest block with an edited module; what lies below runs once.
        matrices: returns a module's dense matrix [d_model, d_in], or that of every expert; it sets the row's scale.
        replies: of the original to harmful, of the compressed model to harmless training prompts.
        epochs: passes over the prompts.
        learning_rate: first step of Adam, relative to the root mean square of r^T W of each matrix.
        seed: of the order of the prompts.
        start: edits of these modules whose rows the learning begins with; without them it begins with zeros.

    Raises:
        ValueError: the loss is not finite.
    """
    gains = writer_gains(model)
    known = {edit.module: edit.row.float().clone() for edit in start}
    rows = [known.get(module, no_row(matrices(module))).requires_grad_() for module in modules]
    readers = {module: reader(unit, gains.get(module)) for module in modules}
    scales = [along(readers[module], matrices(module)).square().mean().sqrt().item() for module in modules]
    optimiser = torch.optim.Adam(
        [{"params": [row], "lr": learning_rate * scale} for row, scale in zip(rows, scales, strict=True)],
        betas=(0.9, 0.98),
    )
    batches = make_batches(model, replies, first_block, seed)
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(0.05, 1 - step / steps))
    edits = [edit_along(module, unit, row, gains.get(module)) for module, row in zip(modules, rows, strict=True)]
    for epoch in range(epochs):
        total = 0.0
        for batch in batches:
            loss = divergence(model, batch, first_block, edits)
            loss.backward()
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            total += loss.item() / len(batches)
        logger.info("epoch %d: KL %.4f nats per token", epoch + 1, total)
        if not total < float("inf"):
            raise ValueError("the calibration diverged (its loss is not finite): lower the patch's learning_rate")
    return [replace(edit, row=edit.row.detach()) for edit in edits]


@torch.no_grad()
def make_batches(model: Any, replies: Sequence[ReplySet], first_block: int, seed: int | None) -> list[_Batch]:
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
    shuffled, shuffled_lengths = [sequences[index] for index in order], [lengths[index] for index in order]
    for pack in plan_packs(model, shuffled, PACK_TOKENS, own_tokens=max(lengths) + 1):
        kept = [(order[index], shuffled_lengths[index] + 1) for index in pack.prompts]
        batches.append(
            _Batch(
                pack,
                block_input(model, blocks, pack, first_block),
                reply_places(pack, shuffled_lengths),
                torch.cat([tokens[index, :count] for index, count in kept]).to(model.device),
                torch.cat([known[index, :count] for index, count in kept]).to(model.device),
            )
        )
    return batches


def divergence(model: Any, batch: _Batch, first_block: int, edits: Sequence[Edit]) -> torch.Tensor:
    """Return the mean KL(original || model with the edits) of a batch's next tokens, nats.

    The tokens that were not kept of the original's distributions count as one.
    """
    blocks = list(decoder_blocks(model))
    with resumed_at(blocks, first_block, batch.states), all_edited(model, edits):
        logits = run_pack(model, batch.pack, logits_to_keep=batch.places.to(model.device))[0]
    patched = logits.float().log_softmax(-1).gather(-1, batch.top_tokens)
    expected = batch.top_log_probabilities
    rest_expected = (1 - expected.exp().sum(-1)).clamp_min(LEAST_PROBABILITY)
    rest_patched = (1 - patched.exp().sum(-1)).clamp_min(LEAST_PROBABILITY)
    kept = (expected.exp() * (expected - patched)).sum(-1)
    return (kept + rest_expected * (rest_expected.log() - rest_patched.log())).mean()


def needs_repair(model: Any, tokenizer: Any, harmful: ReplySet, judged_tokens: int, significance: float) -> Loss:
    """Compare the refusals of the unpatched checkpoint with the original's, on the same validation prompts.

    Args:
        model, tokenizer: the compressed checkpoint.
        harmful: the original's replies to harmful validation prompts.
        judged_tokens: tokens of a reply that the judge sees.
        significance: largest p-value that counts as a loss; 1 asks for a repair in any case.
    """
    flags = _refused(model, tokenizer, harmful.prompts, judged_tokens)
    lost, gained, p_value = mcnemar(harmful.refused, flags)
    return Loss(_share(flags), p_value, significance == 1 or (lost > gained and p_value <= significance))


def choose_strength(
    model: Any,
    tokenizer: Any,
    edits: Sequence[Edit],
    first_block: int,
    validation: Validation,
    judged_tokens: int,
    strengths: Sequence[float],
) -> tuple[list[Edit], dict[str, Any]]:
    """Scale the edits by the strength that does best on validation prompts.

    The strengths are tried in their order. The first that refuses as many harmful
    prompts as the original, within both budgets, is taken. Else it is the one within the budgets that
    refuses most; else the one that over-refuses least.

    Args:
        model, tokenizer: the compressed checkpoint.
        edits: at strength 1.
        first_block: lowest edited block.
        validation: prompts and replies that nothing was learnt from.
        judged_tokens: tokens of a reply that the judge sees.
        strengths: what to multiply the edits by.

    Returns:
        the scaled edits, and a record: the strength, the original's rates, and for every strength
        tried its rates, its KL and whether it keeps the budgets.
    """
    parts = {"harmful": validation.harmful, "harmless": validation.harmless}
    original = {kind: _share(part.refused) for kind, part in parts.items()}
    batches = make_batches(model, [validation.own], first_block, None)
    tried: list[dict[str, Any]] = []
    for strength in strengths:
        if not worth_trying(strength, tried):
            continue
        scaled = _scaled(edits, strength)
        with all_edited(model, scaled):
            refused = {
                kind: _share(_refused(model, tokenizer, part.prompts, judged_tokens)) for kind, part in parts.items()
            }
        kl = _mean_divergence(model, batches, first_block, scaled)
        within = refused["harmless"] <= original["harmless"] + validation.over_refusal_budget
        within = within and kl <= validation.kl_budget
        tried.append(
            {
                "strength": strength,
                "refusal": refused["harmful"],
                "over_refusal": refused["harmless"],
                "kl_harmless": kl,
                "within_budgets": within,
            }
        )
        logger.info("strength %s: %s", strength, tried[-1])
        if within and refused["harmful"] >= original["harmful"]:
            break
    strength = select_strength(tried)
    return _scaled(edits, strength), choice_record(validation.harmful, validation.harmless, strength, tried)


def choice_record(
    harmful: ReplySet, harmless: ReplySet, strength: float, tried: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return what is written about the choice of a strength, with the original's validation replies."""
    return {
        "strength": strength,
        "validation_prompts": {"harmful": len(harmful.refused), "harmless": len(harmless.refused)},
        "original": {"refusal": _share(harmful.refused), "over_refusal": _share(harmless.refused)},
        "tried": list(tried),
    }


def worth_trying(strength: float, tried: Sequence[dict[str, Any]]) -> bool:
    """Tell whether a strength can still be the best: a stronger edit refuses more, of everything.

    A weaker one than one within the budgets refuses less, and a stronger one than one beyond them is beyond as well.
    """
    return not any(strength < row["strength"] if row["within_budgets"] else strength > row["strength"] for row in tried)


def select_strength(tried: Sequence[dict[str, Any]]) -> float:
    """Return the strength within the budgets that refuses most; where none is, the one that over-refuses least.

    Ties go to the one that was tried first.
    """
    within = [row for row in tried if row["within_budgets"]]
    best = max(within, key=lambda row: row["refusal"]) if within else min(tried, key=lambda row: row["over_refusal"])
    return float(best["strength"])


@torch.no_grad()
def _mean_divergence(model: Any, batches: Sequence[_Batch], first_block: int, edits: Sequence[Edit]) -> float:
    sums = [divergence(model, batch, first_block, edits).item() * len(batch.places) for batch in batches]
    return sum(sums) / sum(len(batch.places) for batch in batches)


def _scaled(edits: Sequence[Edit], strength: float) -> list[Edit]:
    return [replace(edit, row=strength * edit.row) for edit in edits]


def _refused(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], tokens: int) -> list[bool]:
    return [not jailbroken_arditi(tokenizer.decode(reply)) for reply in generate(model, tokenizer, prompts, tokens)]


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)

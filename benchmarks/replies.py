"""What calibrated patches, verification and refusal tuning spend their time on, against the plain way to do it.

Short greedy replies: prompts in packs and new tokens by matrix products (aird/inference/generation.py), against
Transformers' `generate` on the same left-padded batches of 64. A training step of a calibrated patch: packs that
resume at the first edited block, with attention prompt by prompt (aird/patching/calibration.py), against
right-padded batches of eight through the whole model. Both compute the same tokens and the same gradient, up to
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aird.inference.generation import generate
from aird.models.loading import load_tokenizer
from aird.models.structure import decoder_blocks, residual_writers
from aird.patching.divergence import divergence, make_batches
from aird.patching.edited import edited
from aird.patching.edits import Edit
from aird.patching.replies import ReplySet
from benchmarks.measure import (
    Result,
    block_operations,
    matrix_rate,
    packed_tokens,
    peak_mb,
    reset_peak,
    timed,
    vocabulary_operations,
)
from benchmarks.workload import Workload, checkpoint

NEW_TOKENS = 16
BATCH = 64
PROMPTS = 128
STEPS = 8
SEQUENCES = 8  # of one padded training batch
LEARNT_TOKENS = 6


@torch.no_grad()
def run(work: Workload) -> list[Result]:
    """Time both pieces of work; each once unmeasured, then the better of two."""
    tokenizer = load_tokenizer(checkpoint())
    return [*_generation(work, tokenizer), *_training(work, tokenizer)]


def _generation(work: Workload, tokenizer: Any) -> list[Result]:
    prompts = sorted(work.train[:PROMPTS], key=len)
    reset_peak()
    generate(work.model, tokenizer, prompts[:8], 2)
    ours = [timed(lambda: generate(work.model, tokenizer, prompts, NEW_TOKENS)) for _ in "12"]
    memory = peak_mb()
    plain = [timed(lambda: _plain_generate(work.model, prompts)) for _ in "12"]
    (found, seconds), (expected, slow) = (min(runs, key=lambda run: run[1]) for runs in (ours, plain))
    new = sum(map(len, found))
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    blocks = len(decoder_blocks(work.model)) * block_operations(work.model)
    operations = (packed_tokens(prompts) + new) * blocks + new * vocabulary_operations(work.model)
    return [
        Result(
            f"short replies over Transformers' generate, {work.name}",
            slow / seconds,
            memory,
            operations / matrix_rate(work.model.dtype) / seconds,
            f"{seconds:.1f} s for {len(prompts)} prompts of {sum(map(len, prompts))} tokens and {new} new ones, "
            f"generate {slow:.1f} s; {same} replies are the same",
        )
    ]


def _plain_generate(model: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    stop = model.generation_config.eos_token_id
    replies = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        width = max(map(len, batch))
        rows = torch.tensor([[stop] * (width - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
        output = model.generate(input_ids=rows, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
        for row in output[:, width:].tolist():
            replies.append(row[: row.index(stop)] if stop in row else row)
    return replies


def _training(work: Workload, tokenizer: Any) -> list[Result]:
    model = work.model
    prompts = work.train[: STEPS * SEQUENCES]
    replies = [reply[:LEARNT_TOKENS] for reply in generate(model, tokenizer, prompts, LEARNT_TOKENS)]
    # Which tokens are compared does not matter for the time; after a reply's end none are.
    shape = len(prompts), LEARNT_TOKENS + 1, 256
    targets = torch.arange(shape[-1]).expand(shape), torch.full(shape, 1 / 512).log()
    part = ReplySet(prompts, replies, *targets, [False] * len(prompts))
    blocks = decoder_blocks(model)
    first = len(blocks) // 2
    upper = [name for block in residual_writers(model)[first:] for name in block.names]
    column = work.candidates[first, -1].float()
    column /= column.norm()
    edits = [
        Edit(name, column[:, None], torch.zeros(1, model.get_submodule(name).in_features, requires_grad=True))
        for name in upper
    ]
    batches = make_batches(model, [part], first, None)

    def gradients(losses: Any) -> list[torch.Tensor]:
        for edit in edits:
            edit.down.grad = None
        with torch.enable_grad():
            for loss, weight in losses():
                (loss * weight).backward()
        return [edit.down.grad.flatten() for edit in edits if edit.down.grad is not None]

    def ours() -> Any:
        for batch in batches:
            yield divergence(model, batch, first, edits), len(batch.places)

    def plain() -> Any:
        for start in range(0, len(prompts), SEQUENCES):
            yield _plain_divergence(model, part, range(start, min(start + SEQUENCES, len(prompts))), edits)

    reset_peak()
    gradients(ours)
    quick = [timed(lambda: gradients(ours)) for _ in "12"]
    memory = peak_mb()
    slow = [timed(lambda: gradients(plain)) for _ in "12"]
    seconds, plain_seconds = min(run[1] for run in quick), min(run[1] for run in slow)
    one, other = (torch.cat(runs[0][0]).double() for runs in (quick, slow))
    places = sum(len(batch.places) for batch in batches)
    tokens = sum(len(batch.pack.token_ids) for batch in batches)
    # Forwards, and backwards to the states: no weight has a gradient.
    operations = 2 * (tokens * (len(blocks) - first) * block_operations(model) + places * vocabulary_operations(model))
    return [
        Result(
            f"calibration's training step over padded batches, {work.name}",
            plain_seconds / seconds,
            memory,
            operations / matrix_rate(model.dtype) / seconds,
            f"{seconds:.1f} s for {len(prompts)} prompts in {len(batches)} packs of {tokens} tokens, padded "
            f"{plain_seconds:.1f} s; cosine of the gradients {(one @ other / one.norm() / other.norm()).item():.4f}",
        )
    ]


def _plain_divergence(model: Any, part: ReplySet, chosen: range, edits: Sequence[Edit]) -> tuple[torch.Tensor, int]:
    """Return the mean loss of some prompts and its number of tokens, by one right-padded pass."""
    sequences = [part.prompts[index] + part.replies[index] for index in chosen]
    width = max(map(len, sequences))
    rows = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
    mask = torch.tensor([[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences])
    with edited(model, edits):
        logits = model(input_ids=rows, attention_mask=mask, use_cache=False).logits
    kept, tokens, known = [], [], []
    for row, index in enumerate(chosen):
        count = len(part.replies[index]) + 1
        kept.append(logits[row, len(sequences[row]) - count : len(sequences[row])])
        tokens.append(part.top_tokens[index, :count])
        known.append(part.top_log_probabilities[index, :count])
    found = torch.cat(kept).float().log_softmax(-1).gather(-1, torch.cat(tokens))
    expected = torch.cat(known)
    rest_expected, rest_found = (1 - each.exp().sum(-1).clamp_max(1 - 1e-6) for each in (expected, found))
    loss = (expected.exp() * (expected - found)).sum(-1) + rest_expected * (rest_expected.log() - rest_found.log())
    return loss.mean(), len(expected)

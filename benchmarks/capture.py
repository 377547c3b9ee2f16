"""Capturing activations, against a bare forward pass of the same packs.

Whether a model computes packs rightly is asked once for all its captures; that is timed on its own.
"""

from __future__ import annotations

import torch

from aird.directions.activations import capture
from aird.inference.packing import PACK_TOKENS, honours_packs, last_logits, make_packs
from benchmarks.measure import (
    Result,
    block_operations,
    matrix_rate,
    peak_mb,
    reset_peak,
    timed,
    vocabulary_operations,
)
from benchmarks.workload import Workload

REPEATS = 3


@torch.no_grad()
def run(work: Workload) -> list[Result]:
    """Time both by turns; the fastest of each counts."""
    layers, positions, width = work.candidates.shape
    packs = make_packs(work.train, PACK_TOKENS, own_tokens=positions)
    last_logits(work.model, packs[0])
    check = timed(lambda: honours_packs(work.model, work.train))[1]
    bare, ours, extra = [], [], 0.0
    for _ in range(REPEATS):
        reset_peak()
        bare.append(timed(lambda: [last_logits(work.model, pack) for pack in packs])[1])
        without = peak_mb()
        reset_peak()
        (states, _), seconds = timed(lambda: capture(work.model, work.train, positions, work.refusal_tokens))
        ours.append(seconds)
        memory = peak_mb()
        extra = memory - without
        kept = states.nbytes / 2**20
        del states
    tokens = sum(len(pack.token_ids) for pack in packs)
    operations = tokens * layers * block_operations(work.model) + len(work.train) * vocabulary_operations(work.model)
    return [
        Result(
            f"activation capture, {work.name}",
            min(bare) / min(ours),
            memory,
            operations / matrix_rate(work.model.dtype) / min(ours),
            f"{min(ours):.2f} s for {len(work.train)} prompts ({tokens} tokens in {len(packs)} packs), bare pass "
            f"{min(bare):.2f} s: {min(ours) / min(bare) - 1:+.1%}; keeps {kept:.0f} MiB "
            f"({len(work.train)} x {layers} x {positions} x {width}), peak {extra:+.0f} MiB over the bare pass; "
            f"whether packs are computed rightly: {check:.2f} s, once for a model's captures",
        )
    ]

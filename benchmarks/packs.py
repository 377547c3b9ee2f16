"""Tokens a second of packs of each size: where a processor gains no more (aird/inference/batching.py)."""

from __future__ import annotations

import torch

from aird.inference.packing import PACK_TOKENS, last_logits, make_packs
from benchmarks.measure import Result, block_operations, matrix_rate, peak_mb, reset_peak, timed
from benchmarks.workload import Workload

SIZES = (64, 128, 256, 512, 1024, 2048)


@torch.no_grad()
def run(work: Workload) -> list[Result]:
    """Time one pass over the same prompts for each size; the rates are of prompts' own tokens."""
    prompts = work.train[:96]
    own = sum(map(len, prompts)) - (len(prompts) - 1) * make_packs(prompts, 1)[0].prefix_length
    rates = {}
    reset_peak()
    last_logits(work.model, make_packs(prompts, PACK_TOKENS)[0])
    for size in SIZES:
        packs = make_packs(prompts, size)
        rates[size] = own / min(
            timed(lambda packs=packs: [last_logits(work.model, pack) for pack in packs])[1] for _ in "12"
        )
    operations = len(work.candidates) * block_operations(work.model)
    return [
        Result(
            f"pack of {PACK_TOKENS} tokens over the best size, {work.name}",
            rates[PACK_TOKENS] / max(rates.values()),
            peak_mb(),
            rates[PACK_TOKENS] * operations / matrix_rate(work.model.dtype),
            "prompts' own tokens a second: " + ", ".join(f"{size}: {rate:.0f}" for size, rate in rates.items()),
        )
    ]

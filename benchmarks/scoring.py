"""Scoring every candidate direction, against the published procedure (benchmarks/published_scoring.py).

The published procedure does the same work for every candidate, three full passes, so it is timed on
a few candidates, those that survive the filters first, and scaled to all. Scores are compared twice: in the model's
own type, where rounding alone moves them, and in float32, where only a mistake would.
"""

from __future__ import annotations

import math
import os

import torch

from aird.directions.candidate_scores import score_candidates
from aird.directions.score_records import PromptScores, mean_scores
from aird.directions.selection import eligible_scores, select_site
from benchmarks.measure import (
    Result,
    block_operations,
    matrix_rate,
    peak_mb,
    reset_peak,
    timed,
    vocabulary_operations,
)
from benchmarks.published_scoring import Site, published_scores
from benchmarks.workload import Workload

TIMED = int(os.environ.get("AIRD_BENCH_SITES", "6"))
COMPARED = int(os.environ.get("AIRD_BENCH_COMPARED", "4"))
EVERY = int(os.environ.get("AIRD_BENCH_LAYERS", "1"))  # for a quick look: candidates of every n-th layer only


def run(work: Workload) -> list[Result]:
    """Time both, compare their scores and their choice."""
    layers, positions, _ = work.candidates.shape
    prompts = work.harmful, work.harmless, work.refusal_tokens
    work.candidates[[layer for layer in range(layers) if (layer + EVERY // 2) % EVERY]] = 0.0
    scored = len(range(EVERY - EVERY // 2, layers, EVERY)) * positions if EVERY > 1 else layers * positions
    reset_peak()
    scores, ours = timed(lambda: score_candidates(work.model, work.candidates, *prompts, work.settings))
    memory = peak_mb()
    rate = matrix_rate(work.model.dtype)
    records = mean_scores(scores)
    eligible, _ = eligible_scores(records, layers, work.settings)
    chosen = select_site(records, layers, work.settings)
    survivors = sorted((row for row in eligible if row["kl"] <= chosen.kl_limit), key=lambda row: row["bypass"])
    others = [row for row in eligible if row not in survivors]
    sites = [(row["layer"], row["position"] + positions) for row in (survivors + others)[:TIMED]]
    plain, taken = timed(lambda: published_scores(work.model, work.candidates, *prompts, sites))
    published = taken / len(sites) * scored
    same = min(plain, key=lambda site: plain[site]["bypass"] if plain[site]["kl"] <= chosen.kl_limit else 1e9)
    rounding = _difference(scores, plain)
    kept = sites[: min(len(survivors), COMPARED)]
    exact = _in_float32(work, kept) if kept else math.nan
    operations = _operations(work, len(eligible))
    return [
        Result(
            f"candidate scores, {work.name}" + (f", AIRD_BENCH_LAYERS={EVERY}" if EVERY > 1 else ""),
            published / ours,
            memory,
            operations / rate / ours,
            f"{ours:.1f} s for {scored} candidates; published {taken / len(sites):.2f} s a candidate "
            f"({len(sites)} timed), {published:.0f} s for all; survivors: {len(survivors)} of {len(eligible)} in full; "
            f"site {(chosen.layer, chosen.position)} by {chosen.rule}, published "
            f"{(same[0], same[1] - positions)}; largest difference of a survivor's score in float32 {exact:.1e} "
            f"({len(kept)} compared), in {str(work.model.dtype).removeprefix('torch.')} {rounding:.3f}",
        )
    ]


def _difference(scores: PromptScores, plain: dict[Site, dict[str, float]]) -> float:
    pairs = (
        (scores[name][site].mean().item(), value) for site, found in plain.items() for name, value in found.items()
    )
    return max((abs(ours - value) for ours, value in pairs), default=math.nan)


def _in_float32(work: Workload, sites: list[Site]) -> float:
    """Return the largest difference of any score at these sites when both compute in float32."""
    only = torch.zeros_like(work.candidates)
    for site in sites:
        only[site] = work.candidates[site]
    dtype = work.model.dtype
    model = work.model.float()
    prompts = work.harmful, work.harmless, work.refusal_tokens
    everything = work.settings.model_copy(update={"minimum_induce": -1e9})
    difference = _difference(
        score_candidates(model, only, *prompts, everything), published_scores(model, only, *prompts, sites)
    )
    model.to(dtype)
    return difference


def _operations(work: Workload, scored: int) -> float:
    """Return the operations that no method of exact scores saves: every token once above its candidate's layer."""
    layers = work.candidates.shape[0]
    used = range(int(work.settings.layer_fraction * layers))
    tokens = {kind: sum(map(len, getattr(work, kind))) for kind in ("harmful", "harmless")}
    shared = len(_shared_prefix(work))
    for kind in tokens:
        tokens[kind] -= shared * (len(getattr(work, kind)) - 1)
    directions = work.candidates.any(dim=-1).sum(-1).tolist()
    block, vocabulary = block_operations(work.model), vocabulary_operations(work.model)
    added = sum(directions[layer] * (layers - layer) * tokens["harmless"] for layer in used) * block
    ablated = scored * layers * (tokens["harmless"] + tokens["harmful"]) * block
    last = len(work.harmless) * sum(directions[layer] for layer in used)
    last += scored * (len(work.harmless) + len(work.harmful))
    return added + ablated + last * vocabulary


def _shared_prefix(work: Workload) -> list[int]:
    from aird.prompts.chat import common_prefix_length

    everything = work.harmful + work.harmless
    return everything[0][: common_prefix_length(everything)]

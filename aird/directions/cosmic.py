"""COSMIC: choose a direction by what it does to activations, without refusal tokens (arXiv 2506.00085).

Of a checkpoint whose refusals begin in an unknown way, or that hardly refuses any more, the refusal
score says little. COSMIC asks instead whether a candidate turns one class's states into the other's:

    compared layers   the tenth of the layers at which the classes' mean states at the last token have the
                      lowest cosine (training prompts)
    ablation          cosine of the mean state of harmful prompts with the candidate ablated, and that
                      of harmless prompts
    addition          cosine of the mean state of harmless prompts with the candidate added, and that
                      of harmful prompts

A mean state is taken over the prompts and the compared layers, as in the authors' code. The highest sum
wins among candidates below the layer limit whose KL divergence on harmless prompts is within its limit.

Less work than in the authors' code, and where that can change the choice: four prompts per class stand for
the validation set in the mean states (not in KL); only the quarter of the candidates with the highest
addition cosines is ablated, and KL is computed for the best four of them, its limit doubled until one
passes; the output of the last block is no compared layer; no extra filter for the last token.
Additions start from the stored input of their layer, and nothing runs beyond the highest compared one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import nn

from aird.directions.activation_cache import ActivationCache, kept_tokens
from aird.directions.score_records import CosmicChoice, CosmicScore
from aird.directions.selection import reached_limit, used_layers
from aird.inference.hooks import ablation, addition, hooks, on_input
from aird.inference.packing import Pack, last_logits, plan_packs, run_pack
from aird.inference.resuming import Reached, block_inputs, resumed_at
from aird.models.blocks import decoder_blocks
from aird.models.structure import writer_modules
from aird.prompts.sets import Record
from aird.settings.directions import Directions
from aird.support import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAYER_SHARE = 0.1
PROMPTS = 4  # of each class; the cosines of all candidates share their noise
ABLATED_SHARE = 0.25
SHORTLIST = 4  # candidates whose KL divergence is computed
ROWS = 6  # candidates that are ablated in one forward pass


class CosmicScores(TypedDict):
    """Scores of the ablated candidates, how many candidates there were, and the cosine of the classes unchanged."""

    scores: list[CosmicScore]
    candidates: int
    baseline: float


def find_cosmic_direction(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: ActivationCache,
    prompts: Mapping[str, Sequence[Record]],
    settings: Directions,
) -> CosmicChoice:
    """Return what `cosmic_direction` chooses on a checkpoint's rightly classified validation prompts.

    Args:
        model, tokenizer: the checkpoint.
        cache: its activation cache.
        prompts: class to the records of its prompt set.
        settings: the filters.
    """
    harmful, harmless = kept_tokens(cache, "validation", tokenizer, prompts)
    return cosmic_direction(model, cache, harmful, harmless, settings)


def cosmic_direction(
    model: PreTrainedModel,
    cache: ActivationCache,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    settings: Directions,
) -> CosmicChoice:
    """Return the site that COSMIC chooses in a checkpoint.

    Args:
        model: a Transformers causal language model with L decoder blocks.
        cache: its activation cache.
        harmful, harmless: token ids of validation prompts.
        settings: the filters.

    Raises:
        ValueError: no candidate has scores that are numbers.
    """
    candidates = cache.candidates
    layers = compared_layers(*(states[:, :, -1] for states in cache.kept_activations("train")))
    scored = score_by_cosine(model, candidates, harmful[:PROMPTS], harmless[:PROMPTS], layers, settings.layer_fraction)
    shortlist = sorted(scored["scores"], key=lambda score: -score["score"])[:SHORTLIST]
    if not shortlist:
        raise ValueError("no candidate direction has a COSMIC score that is a number: the checkpoint is broken")
    units = _units(candidates, [(score["layer"], score["position"]) for score in shortlist])
    for score, divergence in zip(shortlist, ablation_divergences(model, units, harmless), strict=True):
        score["kl"] = divergence
    shortlist = [score for score in shortlist if not math.isnan(score["kl"])]
    if not shortlist:
        raise ValueError("ablating a candidate direction gives no number: the checkpoint is broken")
    limit = reached_limit([score["kl"] for score in shortlist], settings.maximum_kl)
    return {
        **next(score for score in shortlist if score["kl"] <= limit),
        "rule": "cosmic" if limit == settings.maximum_kl else "cosmic_relaxed_kl",
        "kl_limit": limit,
        "baseline": scored["baseline"],
        "compared_layers": layers,
        "candidates": scored["candidates"],
        "ablated": len(scored["scores"]),
        "shortlist": shortlist,
    }


def compared_layers(harmful: torch.Tensor, harmless: torch.Tensor) -> list[int]:
    """Return the layers at which the classes' mean states differ most, in ascending order.

    Args:
        harmful, harmless: [prompts, L, d_model] block inputs at the last token. Layer 0 is left out: there
            the last token's state is its embedding, the same under every prompt.
    """
    means = [states.double().mean(dim=0) for states in (harmful, harmless)]
    similarities = torch.nn.functional.cosine_similarity(means[0], means[1], dim=-1)[1:]
    count = max(1, int(LAYER_SHARE * len(means[0])))
    return sorted(index + 1 for index in similarities.argsort()[:count].tolist())


@torch.no_grad()
def score_by_cosine(
    model: PreTrainedModel,
    candidates: torch.Tensor,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    layers: Sequence[int],
    layer_fraction: float,
) -> CosmicScores:
    """Return the COSMIC scores of the candidates with the highest addition cosines.

    Args:
        model: a Transformers causal language model.
        candidates: [L, P, d_model] float64, raw differences in means.
        harmful, harmless: token ids of prompts.
        layers: the compared layers.
        layer_fraction: candidates at or above this part of the layers take no part.
    """
    blocks = list(decoder_blocks(model))
    positions = candidates.shape[1]
    harmful_packs, harmless_packs = plan_packs(model, harmful), plan_packs(model, harmless)
    target_harmful, target_harmless = (
        _last_states(model, blocks, packs, layers)[0] for packs in (harmful_packs, harmless_packs)
    )
    used = range(used_layers(len(candidates), layer_fraction))
    added = _cosines(_added(model, blocks, candidates, used, harmless_packs, layers), target_harmful)
    sites = [(layer, p) for layer in used for p in range(positions) if candidates[layer, p].any()]
    order = sorted((site for site in sites if not added[site].isnan()), key=lambda site: -added[site].item())

    writers = writer_modules(model)
    scores: list[CosmicScore] = []
    ablated_sites = order[: max(SHORTLIST, math.ceil(ABLATED_SHARE * len(order)))]
    for start in progress.over(range(0, len(ablated_sites), ROWS), "batches of candidates"):
        batch = ablated_sites[start : start + ROWS]
        with ablation(blocks, writers, _units(candidates, batch).to(model.device)):
            states = _last_states(model, blocks, harmful_packs, layers, len(batch))
        for site, ablated in zip(batch, _cosines(states, target_harmless).tolist(), strict=True):
            if not math.isnan(ablated):
                addition_cosine = added[site].item()
                scores.append(
                    {
                        "layer": site[0],
                        "position": site[1] - positions,
                        "addition": addition_cosine,
                        "ablation": ablated,
                        "score": addition_cosine + ablated,
                    }
                )
    return {
        "scores": scores,
        "candidates": len(sites),
        "baseline": _cosines(target_harmful, target_harmless).item(),
    }


@torch.no_grad()
def ablation_divergences(model: PreTrainedModel, units: torch.Tensor, prompts: Sequence[Sequence[int]]) -> list[float]:
    """Return KL(model || model with a direction ablated) of the next token, nats, mean over prompts, per direction.

    Args:
        model: a Transformers causal language model.
        units: [directions, d_model], unit norm.
        prompts: token ids of harmless prompts.
    """
    packs = plan_packs(model, prompts)
    plain = [last_logits(model, pack)[0].double().log_softmax(-1) for pack in packs]
    total = torch.zeros(len(units), dtype=torch.float64)
    with ablation(list(decoder_blocks(model)), writer_modules(model), units.to(model.device)):
        for pack, expected in zip(packs, plain, strict=True):
            ablated = last_logits(model, pack, rows=len(units)).double().log_softmax(-1)
            total += (expected.exp() * (expected - ablated)).sum(dim=(-1, -2)).cpu()
    values: list[float] = (total / len(prompts)).tolist()
    return values


def _added(
    model: PreTrainedModel,
    blocks: list[nn.Module],
    candidates: torch.Tensor,
    used: range,
    packs: Sequence[Pack],
    layers: Sequence[int],
) -> torch.Tensor:
    """Return the summed last states at the compared layers with each candidate added, [used, P, d_model] float64."""
    positions = candidates.shape[1]
    sums = torch.zeros(len(used), *candidates.shape[1:], dtype=torch.float64)
    for pack in progress.over(packs, "batches of prompts"):
        inputs = block_inputs(model, blocks, pack, range(max(layers) + 1))
        for layer in progress.over(used, "layers"):
            # An addition changes what comes after its layer, not what stands before it.
            for unchanged in (each for each in layers if each <= layer):
                states = inputs[unchanged]
                sums[layer] += states[0, pack.ends.to(states.device)].double().sum(dim=0).cpu()
            changed = [each for each in layers if each > layer]
            if changed:
                states = inputs[layer].expand(positions, -1, -1)
                vectors = candidates[layer].to(model.device)
                # One row per position: they share the layer, so also everything below it.
                with resumed_at(blocks, layer, states), addition(blocks[layer], vectors):
                    sums[layer] += _last_states(model, blocks, [pack], changed, positions)
    return sums


def _last_states(
    model: PreTrainedModel, blocks: list[nn.Module], packs: Sequence[Pack], layers: Sequence[int], rows: int = 1
) -> torch.Tensor:
    """Return the last tokens' states summed over all prompts and the inputs of these layers, [rows, d_model].

    They are float64, on the CPU; a pass ends at the highest layer. Inside `resumed_at`, `ablation`
    or `addition` it is theirs.
    """
    kept: list[torch.Tensor] = []
    for pack in packs:
        ends = pack.ends.to(model.device)

        def keep(states: torch.Tensor, layer: int, ends: torch.Tensor = ends) -> torch.Tensor:
            kept.append(states[:, ends.to(states.device)].double().sum(dim=1).cpu())
            if layer == max(layers):
                raise Reached
            return states

        before = [(blocks[layer], on_input(partial(keep, layer=layer))) for layer in layers]
        with hooks(before=before), contextlib.suppress(Reached):
            run_pack(model, pack, rows)
    return torch.stack(kept).sum(dim=0)


def _cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(one, other, dim=-1)


def _units(candidates: torch.Tensor, sites: Iterable[tuple[int, int]]) -> torch.Tensor:
    """Return the unit vectors of candidates at (layer, position), [sites, d_model]."""
    vectors = torch.stack([candidates[site] for site in sites])
    units: torch.Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
    return units

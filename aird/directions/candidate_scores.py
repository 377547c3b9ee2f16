"""Score every candidate direction by what it does to the model (arXiv 2406.11717, section 2.3 and appendix C).

For a candidate r at a site (layer, position), on validation prompts:

    induce = mean refusal score on harmless prompts with r added at the input of its layer
    KL     = mean KL(model || model with r ablated) of the next token, harmless prompts
    bypass = mean refusal score on harmful prompts with r ablated everywhere

The published procedure runs three full passes per candidate. This one gives the
same numbers with less work: layers that the filter drops are not touched; an
addition starts from the stored input of its layer; KL and bypass are computed
only where induce leaves the candidate eligible; all prompts share one sequence.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aird.directions.activation_cache import ActivationCache, kept_tokens
from aird.directions.refusal_score import refusal_scores
from aird.directions.score_records import PromptScores, mean_scores
from aird.directions.selection import eligible_scores, used_layers
from aird.inference.batching import Batches
from aird.inference.hooks import ablation, addition
from aird.inference.packing import Pack, last_logits, plan_packs
from aird.inference.resuming import block_inputs, resumed_at
from aird.models.blocks import decoder_blocks
from aird.models.structure import writer_modules
from aird.prompts.sets import Record
from aird.settings.directions import Directions
from aird.support import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def score_cached_candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: ActivationCache,
    prompts: Mapping[str, Sequence[Record]],
    refusal_tokens: Sequence[int],
    settings: Directions,
) -> PromptScores:
    """Return what the candidates of a checkpoint's cache do to its rightly classified validation prompts.

    Args:
        model, tokenizer: the checkpoint.
        cache: its activation cache.
        prompts: class to the records of its prompt set.
        refusal_tokens: ids that make the refusal score.
        settings: filters; they decide which scores are needed.

    Raises:
        ValueError: no candidate has an induce score that is a number.
    """
    harmful, harmless = kept_tokens(cache, "validation", tokenizer, prompts)
    return score_candidates(model, cache.candidates, harmful, harmless, refusal_tokens, settings)


@torch.no_grad()
def score_candidates(
    model: PreTrainedModel,
    candidates: torch.Tensor,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    refusal_tokens: Sequence[int],
    settings: Directions,
) -> PromptScores:
    """Return what every candidate does to every prompt.

    Args:
        model: a Transformers causal language model with L decoder blocks.
        candidates: [L, P, d_model] float64, raw differences in means.
        harmful, harmless: token ids of validation prompts; the first `scored` of each are used.
        refusal_tokens: ids that make the refusal score.
        settings: filters; they decide which scores are needed.

    Returns:
        {"induce": [L, P, harmless prompts], "kl": [L, P, harmless prompts], "bypass": [L, P, harmful
        prompts]} float64, on the CPU; `mean_scores` (aird/directions/score_records.py) makes one record per
        candidate of it. What no
        filter could make matter is NaN: everything at dropped layers and where the classes do not
        differ at all, KL and bypass where induce does not make the candidate eligible.

    Raises:
        ValueError: no candidate has an induce score that is a number.
    """
    harmful, harmless = harmful[: settings.scored], harmless[: settings.scored]
    blocks = list(decoder_blocks(model))
    layers, positions, _ = candidates.shape
    used = range(used_layers(layers, settings.layer_fraction))
    counts = {"induce": len(harmless), "kl": len(harmless), "bypass": len(harmful)}
    scores = {
        name: torch.full((layers, positions, count), torch.nan, dtype=torch.float64) for name, count in counts.items()
    }
    harmless_packs, harmful_packs = plan_packs(model, harmless), plan_packs(model, harmful)
    scores["induce"][: len(used)] = _induce(model, blocks, candidates, used, harmless_packs, refusal_tokens)
    writers = writer_modules(model)
    plain = [last_logits(model, pack)[0].double().log_softmax(-1) for pack in harmless_packs]

    eligible, _ = eligible_scores(mean_scores(scores), layers, settings)
    sites = [(record["layer"], record["position"] + positions) for record in eligible]
    batches = Batches(1, model.device)

    def ablate(batch: Sequence[tuple[int, int]]) -> None:
        vectors = torch.stack([candidates[site] for site in batch])
        units = (vectors / vectors.norm(dim=-1, keepdim=True)).to(model.device)
        # One row per candidate, from which its own direction is removed.
        with ablation(blocks, writers, units):
            for pack, expected in zip(harmless_packs, plain, strict=True):
                for site, logits in zip(batch, last_logits(model, pack, rows=len(batch)), strict=True):
                    ablated = logits.double().log_softmax(-1)
                    # Exact; the published code adds 1e-6 inside its logarithms, which makes it up to 5% smaller.
                    divergence = (expected.exp() * (expected - ablated)).sum(-1)
                    scores["kl"][site][list(pack.prompts)] = divergence.cpu()
            for pack in harmful_packs:
                for site, logits in zip(batch, last_logits(model, pack, rows=len(batch)), strict=True):
                    scores["bypass"][site][list(pack.prompts)] = refusal_scores(logits, refusal_tokens).cpu()

    with progress.count("candidates", len(sites)) as scored:
        for batch, _ in batches.run(sites, ablate):
            scored.add(len(batch))
    logger.info(
        "%d candidates, %d below the layer limit, %d scored in full",
        layers * positions,
        len(used) * positions,
        len(eligible),
    )
    return scores


def _induce(
    model: PreTrainedModel,
    blocks: list[nn.Module],
    candidates: torch.Tensor,
    used: range,
    packs: Sequence[Pack],
    refusal_tokens: Sequence[int],
) -> torch.Tensor:
    """Return the induce score of every candidate at the used layers, [len(used), P, prompts] float64; else NaN."""
    positions = candidates.shape[1]
    shape = len(used), positions, sum(len(pack.prompts) for pack in packs)
    scores = torch.full(shape, torch.nan, dtype=torch.float64)
    # At layer 0 the template's fixed tokens are the same under every prompt: no direction there.
    sites = {layer: candidates[layer].any(dim=-1).nonzero().flatten().tolist() for layer in used}
    # One row per position: they share the layer, so also everything below it.
    batches = Batches(positions, model.device)
    batches.grows = False  # there are no more
    for pack in progress.over(packs, "batches of prompts"):
        inputs = block_inputs(model, blocks, pack, used)
        for layer in progress.over(used, "layers"):

            def add(batch: Sequence[int], layer: int = layer, pack: Pack = pack, below: Any = inputs) -> torch.Tensor:
                vectors = candidates[layer, list(batch)].to(model.device)
                states = below[layer].expand(len(batch), -1, -1)
                with resumed_at(blocks, layer, states), addition(blocks[layer], vectors):
                    logits = last_logits(model, pack, rows=len(batch))
                return torch.stack([refusal_scores(row, refusal_tokens).cpu() for row in logits])

            for batch, induced in batches.run(sites[layer], add):
                for position, values in zip(batch, induced, strict=True):
                    scores[layer, position, list(pack.prompts)] = values
    return scores

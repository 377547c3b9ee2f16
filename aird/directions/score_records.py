"""The scores of all candidates as files and as records: per prompt, and as means over the prompts.

Apart from what computes them, so that choosing among candidates does not depend on how a model is run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NotRequired, TypedDict

import torch

from aird.support.files import atomic_file

PromptScores = dict[str, torch.Tensor]  # score name to [L, P, prompts] float64


class Score(TypedDict):
    """Mean scores of one candidate; NaN where one was not computed, or is not a number."""

    layer: int
    position: int
    induce: float
    kl: float
    bypass: float


class CosmicScore(TypedDict):
    """What one candidate does: cosines, their sum, and, of the best few, the KL divergence when it is ablated."""

    layer: int
    position: int
    addition: float
    ablation: float
    score: float
    kl: NotRequired[float]


class CosmicChoice(CosmicScore):
    """The site that COSMIC chooses, with its scores."""

    rule: str  # `cosmic`, or `cosmic_relaxed_kl` where the KL limit was doubled
    kl_limit: float
    baseline: float  # cosine of the unchanged classes
    compared_layers: list[int]
    candidates: int
    ablated: int
    shortlist: list[CosmicScore]  # the best few


def mean_scores(scores: PromptScores) -> list[Score]:
    """Return one record per candidate: the means over its prompts.

    Records come for all layers and positions (-P to -1), in that order.
    """
    layers, positions, _ = scores["induce"].shape
    # As lists: thousands of resamples ask for them, and a tensor's entry takes longer than its mean.
    induce, kl, bypass = (scores[name].mean(dim=-1).tolist() for name in ("induce", "kl", "bypass"))
    return [
        Score(
            layer=layer,
            position=position - positions,
            induce=induce[layer][position],
            kl=kl[layer][position],
            bypass=bypass[layer][position],
        )
        for layer in range(layers)
        for position in range(positions)
    ]


def save_scores(scores: Iterable[Score], path: Path) -> None:
    """Write one line per candidate to a CSV file, atomically; a score that is NaN stays empty."""
    import pandas

    with atomic_file(path) as temporary:
        pandas.DataFrame(scores).to_csv(temporary, index=False)


def load_scores(path: Path) -> list[Score]:
    """Read what `save_scores` wrote."""
    import pandas

    scores: list[Score] = pandas.read_csv(path).to_dict("records")
    return scores

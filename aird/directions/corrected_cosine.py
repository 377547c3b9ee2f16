"""The cosine between two models' directions, corrected for the noise of both estimates (claim C2).

A difference in means over n prompts holds noise. It lowers the cosine of two estimates, and where both models see the
same prompts, the noise that they share raises it again: the plain cosine says neither that a direction turned nor that
it did not. Between disjoint halves A and B of the prompts no noise is shared, and it lowers all three cosines alike, so
that it falls out of

    mean cos(original A, compressed B) / sqrt(mean cos(original A, original B) * mean cos(compressed A, compressed B))

(Spearman 1904, correction for attenuation; both assignments of A and B; means over random splits of the prompts). It
estimates the cosine that endless prompts would give, and may lie above 1 by chance.

All prompts' inner products are computed once, so that a split costs no more in a wide model than in a narrow one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import torch

SPLITS = 2000  # random splits behind the value
RESAMPLES = 1000  # of the prompts, behind its interval
SPLITS_OF_A_RESAMPLE = 10
CHUNK = 100  # resamples that are computed at once

States = tuple[torch.Tensor, torch.Tensor]  # harmful and harmless activations at one site, each [prompts, d_model]
Products = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # original x original, original x compressed, ...


class Interval(TypedDict):
    """A value, None where it is undefined, with its 95% interval and the number of undefined resamples."""

    value: float | None
    low: float
    high: float
    undefined: int


class CorrectedCosine(Interval):
    """A corrected cosine, and what it rests on."""

    n_harmful: int
    n_harmless: int
    splits: int
    resamples: int
    seed: int


def corrected_cosine(original: States, compressed: States, seed: int) -> CorrectedCosine:
    """Return the corrected cosine with its 95% interval.

    The interval is a bootstrap's over the prompts: each resample draws prompts with replacement, the same ones for both
    models, and splits them so that the copies of a prompt stay in one half.

    Args:
        original, compressed: activations of the same prompts in the same order, at least two a class.
        seed: of splits and resamples.

    Returns:
        The value is None where the two halves of one model have no common direction at all. Such resamples widen the
        interval as if they lay beyond either end (-1 and 1).
    """
    value, resampled = _estimates(original, compressed, seed)
    return {
        **_interval(value, resampled, 1.0),
        "n_harmful": len(original[0]),
        "n_harmless": len(original[1]),
        "splits": SPLITS,
        "resamples": RESAMPLES,
        "seed": seed,
    }


def corrected_gain(original: States, before: States, after: States, seed: int) -> Interval:
    """Return how far a change raises the corrected cosine with the original, with its 95% interval.

    Both cosines are taken over the same resamples and splits of the prompts, so that what a draw does to both falls
    out of the difference.

    Args:
        original, before, after: activations of the same prompts in the same order, at least two a class.
        seed: of splits and resamples.

    Returns:
        The value is None where one of the cosines is undefined. Such resamples widen the interval as if they lay beyond
        either end (-2 and 2).
    """
    # The draws hang on the seed and on the numbers of prompts alone.
    (value, resampled), (reference, paired) = (_estimates(original, states, seed) for states in (after, before))
    return _interval(value - reference, resampled - paired, 2.0)


def _estimates(original: States, compressed: States, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the corrected cosine, [1], and that of each resample, [RESAMPLES]; NaN where it is undefined."""
    generator = torch.Generator().manual_seed(seed)
    products = _products(original, compressed)
    sizes = [len(states) for states in original]
    value = _corrected(products, [torch.ones(SPLITS, size, dtype=torch.float64) for size in sizes], SPLITS, generator)
    resampled = torch.cat(
        [
            _corrected(
                products, [_resampled(CHUNK, size, generator) for size in sizes], SPLITS_OF_A_RESAMPLE, generator
            )
            for _ in range(RESAMPLES // CHUNK)
        ]
    )
    return value, resampled


def _interval(value: torch.Tensor, resampled: torch.Tensor, furthest: float) -> Interval:
    """Return the 95% interval; undefined resamples lie at either end, -`furthest` and `furthest`."""
    return {
        "value": None if value.isnan() else value.item(),
        "low": resampled.nan_to_num(-furthest).quantile(0.025).item(),
        "high": resampled.nan_to_num(furthest).quantile(0.975).item(),
        "undefined": int(resampled.isnan().sum()),
    }


def _products(original: States, compressed: States) -> Products:
    """Return the inner products of all states, [prompts of both classes, the same] float64.

    The weights of a class sum to 1 in every half, so that a model's mean state can be taken off first.
    """
    both = (torch.cat(states).double() for states in (original, compressed))
    one, other = (states - states.mean(dim=0) for states in both)
    return one @ one.T, one @ other.T, other @ other.T


def _resampled(rows: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Return how often each prompt is drawn in `rows` resamples, each repeated for its splits, [..., size] float64."""
    draws = torch.randint(size, (rows, size), generator=generator)
    counts = torch.zeros(rows, size, dtype=torch.float64).scatter_add_(1, draws, torch.ones(rows, size).double())
    return counts.repeat_interleave(SPLITS_OF_A_RESAMPLE, dim=0)


def _corrected(
    products: Products, counts: Sequence[torch.Tensor], splits: int, generator: torch.Generator
) -> torch.Tensor:
    """Return the corrected cosine over each run of `splits` rows, NaN where it is undefined.

    Args:
        products: of all states.
        counts: per class, how often each prompt counts, [rows, prompts].
        splits: rows that are averaged.
        generator: of the splits, one per row.
    """
    harmful, harmless = (_halves(each, generator) for each in counts)
    halves = [torch.cat([one, -other], dim=1) for one, other in zip(harmful, harmless, strict=True)]
    own, between, others = products

    def inner(one: torch.Tensor, matrix: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return ((one @ matrix) * other).sum(dim=1)

    def mean_cosine(one: torch.Tensor, matrix: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return inner(one, matrix, other).view(-1, splits).mean(dim=1)

    # Weights of the prompts that give each model's two directions, of length 1.
    original, compressed = (
        [half / inner(half, matrix, half).sqrt()[:, None] for half in halves] for matrix in (own, others)
    )
    shared = mean_cosine(original[0], between, compressed[1]) + mean_cosine(original[1], between, compressed[0])
    reliable = mean_cosine(original[0], own, original[1]), mean_cosine(compressed[0], others, compressed[1])
    defined = (reliable[0] > 0) & (reliable[1] > 0)
    return torch.where(defined, shared / 2 / (reliable[0] * reliable[1]).sqrt(), math.nan)


def _halves(counts: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of two random halves of each row's prompts, [rows, prompts], each row's sum 1."""
    keys = torch.rand(counts.shape, generator=generator).masked_fill(counts == 0, 2.0)
    first = keys.argsort(dim=1).argsort(dim=1) < (counts > 0).sum(dim=1, keepdim=True) // 2
    halves = counts * first, counts * ~first
    one, other = (half / half.sum(dim=1, keepdim=True) for half in halves)
    return one, other

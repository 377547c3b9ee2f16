"""Compare the refusal direction of a compressed model with the original's.

Two cosines: at the *same site* (the original's), and between each model's direction at its *own
source*. A cosine means nothing alone, so each has a null, the same cosine with both estimates taken
from the original, from two halves of its prompts (arXiv 2609.30275):

    same site    both halves at the original's site
    own source   one half at the original's site, the other at the compressed model's: across sites a
                 cosine drops without any rotation, and this is by how much

Halves hold n/2 prompts, so a null is somewhat lower and wider than that of n: "below the null" is
said too seldom rather than too often.

The directions in use rest on the prompts that each model classifies rightly, which are not the same
for both. So tests and intervals use all training prompts of both models instead (`shared`): what
differs there, differs for no other reason than the model.

Whether the direction is kept, the corrected cosine says (aird/directions/corrected_cosine.py), and whether the source
site is, the sites that both models choose on resampled prompts (aird/directions/source_site.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aird.directions.activation_cache import ActivationCache
from aird.directions.candidates import difference_in_means
from aird.directions.corrected_cosine import States, corrected_cosine
from aird.directions.direction import Direction
from aird.directions.source_site import compare_sites
from aird.prompts.sets import CLASSES

SPLIT_HALVES = 2000  # random splits behind a null: fewer could not pass a correction for many compressions
BOOTSTRAP_RESAMPLES = 1000


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a checkpoint's activations, and the direction that was chosen in it."""

    cache: ActivationCache
    direction: Direction

    @property
    def site(self) -> dict[str, int]:
        """The direction's site as a record."""
        return {"layer": self.direction.layer, "position": self.direction.position}


def states_at(cache: ActivationCache, site: Direction) -> States:
    """Return all training activations of a cache at a direction's site, those of each class [prompts, d_model]."""
    harmful, harmless = (cache.groups[kind, "train"].activations[:, site.layer, site.position] for kind in CLASSES)
    return harmful, harmless


def compare_directions(original: Side, compressed: Side, seed: int) -> dict[str, object]:
    """Return the record of a comparison.

    cosine_same_site, cosine_own_source and norm_ratio are of the directions in use; the same names
    with `_shared` of all prompts, as are the intervals `_bootstrap`, the nulls (`split_half_null`,
    `own_source_null`) and their p-values (two-sided). `cosine_same_site_corrected` is what `corrected_cosine`
    returns, of all prompts too; `source_site` what `compare_sites` does.

    Args:
        original, compressed: two checkpoints whose caches hold the same prompts in the same order.
        seed: of splits and resamples.

    Raises:
        ValueError: the caches hold other prompts.
    """
    check_same_prompts(original.cache, compressed.cache)
    candidates = [side.cache.candidates for side in (original, compressed)]
    one, other = (each[original.direction.layer, original.direction.position] for each in candidates)
    at_site, compressed_at_site = (states_at(side.cache, original.direction) for side in (original, compressed))
    at_own, compressed_at_own = (states_at(side.cache, compressed.direction) for side in (original, compressed))
    record: dict[str, object] = {
        "site": original.site,
        "own_site": compressed.site,
        "cosine_same_site": cosine(one, other),
        "cosine_own_source": cosine(original.direction.unit, compressed.direction.unit),
        "norm_ratio": (other.norm() / one.norm()).item(),
    }
    for name, states, null_name, null_states in (
        ("cosine_same_site", compressed_at_site, "split_half_null", at_site),
        ("cosine_own_source", compressed_at_own, "own_source_null", at_own),
    ):
        shared = cosine(difference_in_means(*at_site), difference_in_means(*states))
        cosines, ratios = bootstrap(at_site, states, seed)
        null = split_half_cosines(at_site, null_states, seed)
        record |= {
            f"{name}_shared": shared,
            f"{name}_bootstrap": summarise(cosines),
            null_name: summarise(null),
            f"{name}_p_value": low_p_value(null, shared),
        }
        if states is compressed_at_site:
            record["norm_ratio_bootstrap"] = summarise(ratios)
    record["cosine_same_site_corrected"] = corrected_cosine(at_site, compressed_at_site, seed)
    record["source_site"] = compare_sites(original.direction.record, compressed.direction.record)
    record["projections"] = [
        {"states_of": whose, "kind": kind, "direction": name, **side.site, **projections(states, side.direction.unit)}
        for name, side, both in (
            ("original", original, (at_site, compressed_at_site)),
            ("own", compressed, (at_own, compressed_at_own)),
        )
        for whose, classes in zip(("original", "compressed"), both, strict=True)
        for kind, states in zip(CLASSES, classes, strict=True)
    ]
    record["sites"] = cosine_and_norm_grids(*candidates)
    return record


def check_same_prompts(one: ActivationCache, other: ActivationCache) -> None:
    """Check that two caches can be compared.

    Raises:
        ValueError: they hold other prompts, or the same ones in another order.
    """
    for key, group in one.groups.items():
        if group.ids != other.groups[key].ids:
            raise ValueError(
                f"the two activation caches hold different {' '.join(key)} prompts: make both from one set"
            )


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the cosine of two vectors of any floating type, computed in float64."""
    return torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1).item()


def cosine_and_norm_grids(original: torch.Tensor, compressed: torch.Tensor) -> list[dict[str, float | None]]:
    """Return one record {layer, position, cosine, norm_ratio} per site.

    Both are None where the original has no difference at all: at layer 0 the template's fixed
    tokens have the same embedding under every prompt.

    Args:
        original, compressed: differences in means, [L, P, d_model] float64.
    """
    cosines = torch.nn.functional.cosine_similarity(original, compressed, dim=-1)
    norms = original.norm(dim=-1)
    ratios = compressed.norm(dim=-1) / norms
    layers, positions = cosines.shape
    return [
        {
            "layer": layer,
            "position": position - positions,
            "cosine": cosines[layer, position].item() if norms[layer, position] > 0 else None,
            "norm_ratio": ratios[layer, position].item() if norms[layer, position] > 0 else None,
        }
        for layer in range(layers)
        for position in range(positions)
    ]


def split_half_cosines(one: States, other: States, seed: int) -> torch.Tensor:
    """Return what the cosine of two estimates from one model looks like, [SPLIT_HALVES] float64.

    Each class is split into random halves of its prompts; one direction is computed from the first
    half of `one`, another from the second half of `other`.

    Args:
        one, other: activations of the same prompts in the same order, at two sites or at one.
        seed: of the splits.
    """
    generator = torch.Generator().manual_seed(seed)
    means: list[list[torch.Tensor]] = [[], []]
    for first, second in zip(one, other, strict=True):
        middle = len(first) // 2
        order = torch.rand(SPLIT_HALVES, len(first), generator=generator).argsort(dim=1)
        weights = torch.zeros(SPLIT_HALVES, len(first), dtype=torch.float64)
        weights.scatter_(1, order[:, :middle], 1.0)
        means[0].append(weights @ first.double() / middle)
        means[1].append((1 - weights) @ second.double() / (len(first) - middle))
    first_half, second_half = (harmful - harmless for harmful, harmless in means)
    return torch.nn.functional.cosine_similarity(first_half, second_half, dim=-1)


def bootstrap(one: States, other: States, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and norm ratio of two models' directions over resamples of the shared prompts.

    Args:
        one, other: activations of the same prompts in the same order.
        seed: of the resamples.

    Returns:
        cosines and ratios |other| / |one|, each [BOOTSTRAP_RESAMPLES] float64.
    """
    generator = torch.Generator().manual_seed(seed)
    directions: list[list[torch.Tensor]] = [[], []]
    for states in zip(one, other, strict=True):
        count = len(states[0])
        draws = torch.randint(count, (BOOTSTRAP_RESAMPLES, count), generator=generator)
        weights = torch.zeros(BOOTSTRAP_RESAMPLES, count, dtype=torch.float64)
        weights.scatter_add_(1, draws, torch.ones_like(weights))
        for means, each in zip(directions, states, strict=True):
            means.append(weights @ each.double() / count)
    first, second = (harmful - harmless for harmful, harmless in directions)
    return torch.nn.functional.cosine_similarity(first, second, dim=-1), second.norm(dim=-1) / first.norm(dim=-1)


def low_p_value(null: torch.Tensor, value: float) -> float:
    """Return how surprisingly low a value is under a null: twice (1 + no larger ones) / (1 + all), at most 1.

    Twice, as a two-sided p-value is: below 5% is the same as below the null's 95% interval.
    """
    return min(1.0, 2 * (1 + int((null <= value).sum())) / (1 + len(null)))


def projections(states: torch.Tensor, unit: torch.Tensor) -> dict[str, float]:
    """Return n, mean and standard deviation of the activations' component along a unit direction."""
    values = states.double() @ unit.double()
    return {"n": len(values), "mean": values.mean().item(), "standard_deviation": values.std().item()}


def summarise(values: torch.Tensor) -> dict[str, float]:
    """Return {"mean", "low", "high"}: the mean and the 2.5% / 97.5% quantiles."""
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return {"mean": values.mean().item(), "low": low, "high": high}

"""Compare the refusal direction of a compressed model with the original's.

The cosine of two directions taken at different layers drops without any
rotation, so the comparison at the *same* site (the original's) stands beside the
one between each model's own source site; and a cosine only means something
against the cosine of two estimates from the same model (split halves,
arXiv 2609.30275).
"""

from __future__ import annotations

from typing import Any

import torch

from aird.activations import difference_in_means

SPLIT_HALVES = 100  # random splits behind the null
BOOTSTRAP_RESAMPLES = 200


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the cosine of two vectors of any floating type, computed in float64."""
    return torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1).item()


def cosine_and_norm_grids(original: torch.Tensor, compressed: torch.Tensor) -> list[dict[str, Any]]:
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


def split_half_null(harmful: torch.Tensor, harmless: torch.Tensor, seed: int) -> dict[str, float]:
    """Return what the cosine of two estimates from one model looks like.

    Each class is split into random halves, a direction is computed from each half, and their
    cosine taken; the estimates rest on n/2 prompts, so this null is somewhat low for n.

    Args:
        harmful, harmless: [prompts, d_model] activations at one site.
        seed: of the splits.

    Returns:
        {"mean", "low", "high"}: mean and 2.5% / 97.5% quantiles of the cosine.
    """
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(SPLIT_HALVES):
        halves: list[list[torch.Tensor]] = [[], []]
        for states in (harmful, harmless):
            order = torch.randperm(len(states), generator=generator)
            middle = len(states) // 2
            halves[0].append(states[order[:middle]])
            halves[1].append(states[order[middle:]])
        values.append(cosine(difference_in_means(*halves[0]), difference_in_means(*halves[1])))
    return _summary(values)


def bootstrap_cosine(
    original: tuple[torch.Tensor, torch.Tensor], compressed: tuple[torch.Tensor, torch.Tensor], seed: int
) -> dict[str, float]:
    """Return the cosine between two models' directions with a bootstrap interval over the shared prompts.

    Args:
        original, compressed: (harmful, harmless) activations [prompts, d_model] at one site, the
            same prompts in the same order.
        seed: of the resamples.

    Returns:
        {"mean", "low", "high"} over resamples of the prompts.
    """
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(BOOTSTRAP_RESAMPLES):
        draws = [torch.randint(len(states), (len(states),), generator=generator) for states in original]
        one = difference_in_means(*(states[draw] for states, draw in zip(original, draws, strict=True)))
        other = difference_in_means(*(states[draw] for states, draw in zip(compressed, draws, strict=True)))
        values.append(cosine(one, other))
    return _summary(values)


def projections(states: torch.Tensor, unit: torch.Tensor) -> dict[str, float]:
    """Return mean and standard deviation of the activations' component along a unit direction."""
    values = states.double() @ unit.double()
    return {"mean": values.mean().item(), "standard_deviation": values.std().item()}


def _summary(values: list[float]) -> dict[str, float]:
    tensor = torch.tensor(values, dtype=torch.float64)
    low, high = tensor.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"mean": tensor.mean().item(), "low": low, "high": high}

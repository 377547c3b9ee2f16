"""The candidate directions of a checkpoint: at every site, the difference between its two classes' mean activations.

They are computed once, when the activations are captured, and kept with them (aird/directions/activation_cache.py).
Comparisons take the same difference over halves and resamples of the prompts.
"""

from __future__ import annotations

import torch


def difference_in_means(harmful: torch.Tensor, harmless: torch.Tensor) -> torch.Tensor:
    """Return mean(harmful) - mean(harmless) over the prompts, [...] float64.

    arXiv 2406.11717, equations 1 and 2; accumulated in float64 as in their code.

    Args:
        harmful, harmless: [prompts, ...], such as [prompts, L, P, d_model].
    """
    return harmful.double().mean(dim=0) - harmless.double().mean(dim=0)

"""The refusal score of a next-token distribution.

Refusal score = logit of the probability that the next token is one that
refusals begin with (Arditi et al., arXiv 2406.11717, appendix B); aird/directions/refusal_tokens.py finds those, and
the lead that a prompt ends with where all replies begin alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

EPSILON = 1e-8  # the published constant: keeps the logarithm finite at probability 0


def refusal_scores(logits: torch.Tensor, refusal_tokens: Sequence[int]) -> torch.Tensor:
    """Return log(P + 1e-8) - log(1 - P + 1e-8), P the probability of the refusal tokens.

    Args:
        logits: [..., vocabulary], any type.
        refusal_tokens: token ids.

    Returns:
        [...] float64, unitless (natural-log odds).
    """
    probability = logits.double().softmax(dim=-1)[..., list(refusal_tokens)].sum(dim=-1)
    return torch.log(probability + EPSILON) - torch.log(1 - probability + EPSILON)

"""The refusal score of a next-token distribution, and the tokens that it counts.

Refusal score = logit of the probability that the next token is one that
refusals begin with (Arditi et al., arXiv 2406.11717, appendix B); aird/directions/refusal_tokens.py finds those, and
the lead that a prompt ends with where all replies begin alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

EPSILON = 1e-8  # the published constant: keeps the logarithm finite at probability 0
MINIMUM_REFUSALS = 5
SMALLEST_SHARE = 0.05  # of the refusals
# How many times as often as answers refusals begin with a refusal token. As their shares of the refusals add up to at
# most 1, those of the answers add up to at most a half: most answers score below 0, whatever the model.
CLEAR_LEAD = 2


def refusal_scores(logits: torch.Tensor, refusal_tokens: Sequence[int]) -> torch.Tensor:
    """Return log(P + 1e-8) - log(1 - P + 1e-8), P the probability of the refusal tokens.

    Args:
        logits: [..., vocabulary], any type.
        refusal_tokens: token ids.

    Returns:
        [...] float64, unitless (natural-log odds).
    """
    probability = logits.double().softmax(dim=-1)[..., list(refusal_tokens)].sum(dim=-1)
    return (probability + EPSILON).log() - (1 - probability + EPSILON).log()


def log_odds(probability: float) -> float:
    """Return `refusal_scores` of one probability of the refusal tokens, which rounding may put beyond 1."""
    probability = min(probability, 1.0)
    return math.log(probability + EPSILON) - math.log(1 - probability + EPSILON)


def leading_tokens(refusals: Sequence[int], answers: Sequence[int]) -> list[int]:
    """Return the tokens that begin at least 5% of refusals, and these at least twice as often as answers.

    Args:
        refusals, answers: the first tokens of replies.

    Returns:
        Token ids, the commonest first.
    """
    first, others = Counter(refusals), Counter(answers)
    least = {token: CLEAR_LEAD * others[token] / max(1, len(answers)) for token in first}
    ordered = sorted(first, key=lambda token: (-first[token], token))
    return [token for token in ordered if first[token] / len(refusals) >= max(SMALLEST_SHARE, least[token])]

"""Intervals and tests for rates over prompts."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import binomtest


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a rate (Wilson 1927), each bound in [0, 1]."""
    interval = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int, float]:
    """Compare two labels of the same prompts (McNemar 1947, exact form).

    Args:
        before, after: one label per prompt, in the same order.

    Returns:
        (prompts that only `before` holds for, prompts that only `after` holds for, two-sided p-value).
    """
    only_before = sum(one and not other for one, other in zip(before, after, strict=True))
    only_after = sum(other and not one for one, other in zip(before, after, strict=True))
    discordant = only_before + only_after
    p_value = 1.0 if discordant == 0 else float(binomtest(only_before, discordant, 0.5).pvalue)
    return only_before, only_after, p_value

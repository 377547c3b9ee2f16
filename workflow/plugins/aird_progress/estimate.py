"""How fast a machine is, and what waits for what: the arithmetic of the estimate of what is left (`state.Run`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping

from aird_progress.weights import THEN

# What a rule's jobs say of a machine's pace: nearly 1 if they are much longer than so many seconds, little if shorter.
TELLING = 30.0
# So much does it count that a machine may be as fast as that of the weights.
FIRST_GUESS = 0.1
SHORTEST = 0.1  # seconds; shorter jobs are measured too roughly


def mean_pace(times: Iterable[tuple[float, float]]) -> float:
    """Return how many times longer jobs take than on the machine of the weights.

    A geometric mean over rules, as some are slower on a machine than others.

    Args:
        times: per rule the seconds that its jobs took together, and the sum of their weights.
    """
    logarithms, counts = 0.0, FIRST_GUESS
    for seconds, weight in times:
        telling = weight / (weight + TELLING)
        logarithms += telling * math.log(max(seconds, SHORTEST) / weight)
        counts += telling
    return math.exp(logarithms / counts)


def chain_after(seconds: Mapping[str, float], waiting: Mapping[str, int]) -> Callable[[str], float]:
    """Return a function from a rule to the seconds of what waits for one of its jobs, one after the other.

    Args:
        seconds: that a job of each rule takes.
        waiting: how many jobs of each rule have not begun.
    """

    @functools.cache
    def after(rule: str) -> float:
        return max(
            (after(then) + (seconds[then] if waiting.get(then) else 0.0) for then in THEN.get(rule, ())), default=0.0
        )

    return after

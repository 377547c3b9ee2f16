"""How far apart the classes are along a direction, from projected activations."""

from __future__ import annotations

import math
from collections.abc import Mapping


def separation(harmful: Mapping[str, float], harmless: Mapping[str, float]) -> float:
    """Return how far apart two projections' means are, in standard deviations; NaN where nothing varies.

    Args:
        harmful, harmless: `mean` and `standard_deviation` of the component of the activations.
    """
    spread = math.sqrt((harmful["standard_deviation"] ** 2 + harmless["standard_deviation"] ** 2) / 2)
    return float((harmful["mean"] - harmless["mean"]) / spread) if spread else math.nan

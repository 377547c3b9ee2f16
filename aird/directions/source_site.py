"""Did compression move the source site? Two chosen sites, each with those that resampled validation prompts choose.

Plain arithmetic on two records of a direction (aird/directions/stability.py made their part `stability`). Both models
are resampled: a site that either chooses by chance is no evidence of a move.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]


def compare_sites(original: Record, compressed: Record) -> dict[str, object]:
    """Return how far the source site moved, against how much both models' sites vary.

    The p-value is the probability that a resample of the original chooses a site that it chooses no more often than
    the one that a resample of the compressed model chooses; the two are drawn independently. It is 1 where both choose
    one site only, the same; 1 / (1 + resamples) where no resample of the original chooses any of the other's sites.

    Args:
        original, compressed: records of the two directions, with `layer` and `stability`.

    Returns:
        {"layers_moved", "layers_low", "layers_high" (2.5% and 97.5% quantiles of the difference between the layers
        of two resamples; None where one model has none), "same_site_original", "same_site_compressed" (share of a
        model's own resamples that choose its site), "same_site" (share of pairs of resamples that choose the same),
        "p_value", "resamples"}.
    """
    theirs, ours = _counts(original["stability"]), _counts(compressed["stability"])
    total, drawn = sum(theirs.values()), sum(ours.values())
    record = {
        "layers_moved": compressed["layer"] - original["layer"],
        "layers_low": None,
        "layers_high": None,
        "same_site_original": original["stability"]["same_site"],
        "same_site_compressed": compressed["stability"]["same_site"],
        "same_site": None,
        "p_value": 1.0,
        "resamples": min(total, drawn),
    }
    if not record["resamples"]:
        return record
    tail = 0.0
    for site, count in ours.items():
        as_rare = sum(other for other in theirs.values() if other <= theirs.get(site, 0))
        tail += count / drawn * (1 + as_rare) / (1 + total)
    moves: dict[int, int] = {}
    for (layer, _), count in ours.items():
        for (other, _), times in theirs.items():
            moves[layer - other] = moves.get(layer - other, 0) + count * times
    return record | {
        "layers_low": _quantile(moves, 0.025),
        "layers_high": _quantile(moves, 0.975),
        "same_site": sum(count * theirs.get(site, 0) for site, count in ours.items()) / (drawn * total),
        "p_value": tail,
    }


def _counts(stability: Record) -> dict[tuple[int, int], int]:
    """Return how many resamples chose each (layer, position)."""
    total = stability["resamples"] - stability["undefined"]
    return {(site["layer"], site["position"]): round(site["share"] * total) for site in stability["sites"]}


def _quantile(counts: Mapping[int, int], part: float) -> int:
    """Return the smallest value that at least this part of all lies at or below."""
    needed = math.ceil(part * sum(counts.values()))
    reached = 0
    for value in sorted(counts):
        reached += counts[value]
        if reached >= needed:
            return value
    raise AssertionError("a quantile of nothing")

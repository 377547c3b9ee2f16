"""Choose a checkpoint's refusal direction among its scored candidates: the node that every patch waits for.

By the published filters (aird/directions/selection.py) or by COSMIC (aird/directions/cosmic.py), with a record of
how, and of how stable the filters' site is under resampled prompts (aird/directions/stability.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from aird.directions.activation_cache import ActivationCache, kept_counts
from aird.directions.direction import Direction
from aird.directions.score_records import CosmicChoice, PromptScores, Score
from aird.directions.selection import Selection, select_site
from aird.directions.stability import NOT_RESAMPLED, site_stability
from aird.settings.directions import Directions


def choose_direction(
    cache: ActivationCache,
    scores: Sequence[Score],
    prompt_scores: PromptScores,
    settings: Directions,
    seed: int,
    cosmic: CosmicChoice | None = None,
) -> Direction:
    """Return the best candidate direction of a checkpoint, by the rule that the settings name.

    Args:
        cache: the checkpoint's activation cache.
        scores: records with layer, position, induce, kl and bypass (NaN where not computed).
        prompt_scores: the same scores per prompt, from which the site's stability is resampled.
        settings: the filters.
        seed: of the resamples.
        cosmic: the record of `cosmic_direction`, which settings may ask for.

    Raises:
        ValueError: no candidate has scores that are numbers.
    """
    layers, positions, _ = cache.candidates.shape
    selection = select_site(scores, layers, settings)
    by_cosmic = settings.selector == "cosmic" or (settings.fallback == "cosmic" and selection.rule != "published")
    if by_cosmic:
        assert cosmic is not None, "these settings need COSMIC's site"
        # Nothing survived Arditi's filters, or nobody asked.
        selection = Selection(cosmic["layer"], cosmic["position"], cosmic["rule"], 0, cosmic["kl_limit"])
    vector = cache.candidates[selection.layer, selection.position]
    chosen = next(row for row in scores if (row["layer"], row["position"]) == (selection.layer, selection.position))
    record = {
        **asdict(selection),
        "induce": _number(chosen["induce"]),
        "kl": _number(chosen["kl"]),
        "bypass": _number(chosen["bypass"]),
        "layers": layers,
        "positions": positions,
        "candidates": layers * positions,
        "norm": vector.norm().item(),
        "prompts": kept_counts(cache),
        "stability": NOT_RESAMPLED
        if by_cosmic
        else site_stability(prompt_scores, (selection.layer, selection.position), settings, seed),
    }
    return Direction(vector / vector.norm(), vector.norm().item(), record)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value

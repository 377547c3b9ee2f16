"""Choose one candidate direction from the scores: the published filters, and a defined fallback.

Published rule (code of arXiv 2406.11717, `select_direction`): drop candidates
with a NaN score, at a layer >= int(0.8 L), with KL > 0.1 or with induce < 0;
of the others take the lowest bypass. Where none is left their code stops; here:

1. `published`: at least one candidate passes all filters.
2. `relaxed_kl`: the KL limit is doubled until a candidate passes (the factor is reported).
3. `relaxed_induce`: no candidate reaches the minimum induce, as in a damaged model. The tenth that
   induces most takes part instead, then as above. (The one that induces most, alone, would nearly
   always lie in the last layers, next to the refusal tokens.)

Every step but the first is reported as a fallback. By `directions.fallback: cosmic` the site of
aird/directions/cosmic.py takes the place of steps 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aird.directions.score_records import Score
from aird.settings.directions import Directions

# Of the candidates in range, the part that takes part where none induces refusal.
FALLBACK_SHARE = 0.1


@dataclass(frozen=True)
class Selection:
    """The chosen site and how it was chosen.

    Attributes:
        layer: index l: the direction lives at the input of block l.
        position: negative index of the post-instruction token.
        rule: `published`, `relaxed_kl` or `relaxed_induce`; `cosmic` or `cosmic_relaxed_kl` where that chose.
        survivors: number of candidates that passed all filters of that rule; 0 where COSMIC chose.
        kl_limit: the KL limit in force, nats.
    """

    layer: int
    position: int
    rule: str
    survivors: int
    kl_limit: float


def used_layers(layers: int, fraction: float) -> int:
    """Return how many layers, from the first, have candidates that take part.

    Raises:
        ValueError: the fraction leaves none.
    """
    used = int(fraction * layers)
    if used == 0:
        raise ValueError(
            f"directions.layer_fraction: leaves none of the model's layers ({layers}), and so no candidate direction; "
            f"write at least {math.ceil(1000 / layers) / 1000:g} (found: {fraction:g})"
        )
    return used


def eligible_scores(scores: Iterable[Score], layers: int, settings: Directions) -> tuple[list[Score], bool]:
    """Return the records that induce enough to be scored in full, and whether they reach the minimum.

    Args:
        scores: of which layer and induce are read.
        layers: number of decoder blocks, L.
        settings: the filters.

    Raises:
        ValueError: `layer_fraction` leaves no layer, or no candidate has an induce score that is a number.
    """
    limit = used_layers(layers, settings.layer_fraction)
    in_range = [score for score in scores if score["layer"] < limit and not math.isnan(score["induce"])]
    if not in_range:
        raise ValueError("no candidate direction has a score that is a number: the checkpoint is broken")
    reaching = [score for score in in_range if score["induce"] >= settings.minimum_induce]
    if reaching:
        return reaching, True
    ranked = sorted(in_range, key=lambda score: score["induce"], reverse=True)
    return ranked[: math.ceil(len(ranked) * FALLBACK_SHARE)], False


def select_site(scores: Iterable[Score], layers: int, settings: Directions) -> Selection:
    """Return the best site by the rules above.

    Args:
        scores: of all candidates.
        layers: number of decoder blocks, L.
        settings: the filters.

    Raises:
        ValueError: no eligible candidate has scores that are numbers.
    """
    eligible, reached = eligible_scores(scores, layers, settings)
    scored = [score for score in eligible if not (math.isnan(score["kl"]) or math.isnan(score["bypass"]))]
    if not scored:
        raise ValueError("ablating a candidate direction gives no number: the checkpoint is broken")
    kl_limit = reached_limit([score["kl"] for score in scored], settings.maximum_kl)
    passing = [score for score in scored if score["kl"] <= kl_limit]
    best = min(passing, key=lambda score: score["bypass"])
    relaxed = "published" if kl_limit == settings.maximum_kl else "relaxed_kl"
    return Selection(best["layer"], best["position"], relaxed if reached else "relaxed_induce", len(passing), kl_limit)


def reached_limit(divergences: Sequence[float], limit: float) -> float:
    """Return a KL limit, doubled until one of these KL divergences (all numbers, nats) is at most that."""
    while min(divergences) > limit:
        limit *= 2
    return limit

"""Does the original's refusal direction come back in a patched checkpoint? (claim C5)

A patched checkpoint is a compressed one with an adapter on it. It runs over the direction prompts as every checkpoint
does (aird/directions/activations.py), and answers the held-out ones with the original's direction r ablated and added
(aird/directions/verification.py). Here the three checkpoints are compared, all at the original's site (l*, p*):

    cosine      of its difference in means with the original's, corrected for noise
    gain        corrected cosine of the patched checkpoint minus that of the compressed one without the patch, over the
                same resamples of the prompts
    norm ratio  |difference in means| over that of the original
    projections of the states of each class on r: mean and standard deviation

All of it rests on all training prompts, the same for the three, whether a checkpoint classifies them rightly or not. An
edit writes along r at the site or below it, so that a higher cosine alone does not show that the model uses it: whether
refusal rests on r again, the ablation tells.
"""

from __future__ import annotations

from aird.directions.activation_cache import ActivationCache
from aird.directions.candidates import difference_in_means
from aird.directions.comparison import Side, bootstrap, check_same_prompts, projections, states_at, summarise
from aird.directions.corrected_cosine import States, corrected_cosine, corrected_gain
from aird.directions.direction import Direction
from aird.prompts.sets import CLASSES


def compare_restored(
    original: Side, compressed: ActivationCache, patched: ActivationCache, seed: int
) -> dict[str, object]:
    """Return the record of a comparison of the original, a compressed checkpoint and its patched form.

    Args:
        original: the original's cache, and the direction whose site and unit vector everything is about.
        compressed, patched: caches of the same prompts in the same order, without and with the patch.
        seed: of splits and resamples.

    Returns:
        {"site", "corrected_cosine_gain" (`aird.directions.corrected_cosine.corrected_gain`), "checkpoints"}; those are
        {"original", "compressed", "patched"}, each with "corrected_cosine" (1 for the original), "norm_ratio",
        "norm_ratio_bootstrap" and "projections" per class.

    Raises:
        ValueError: the caches hold other prompts.
    """
    caches = {"original": original.cache, "compressed": compressed, "patched": patched}
    for cache in (compressed, patched):
        check_same_prompts(original.cache, cache)
    states = {name: states_at(cache, original.direction) for name, cache in caches.items()}
    gain = corrected_gain(states["original"], states["compressed"], states["patched"], seed)
    described = {name: _describe(states["original"], each, original.direction, seed) for name, each in states.items()}
    return {"site": original.site, "checkpoints": described, "corrected_cosine_gain": gain}


def _describe(original: States, states: States, direction: Direction, seed: int) -> dict[str, object]:
    """Return what is said of one checkpoint at the direction's site."""
    one, other = difference_in_means(*original), difference_in_means(*states)
    return {
        "corrected_cosine": corrected_cosine(original, states, seed),
        "norm_ratio": (other.norm() / one.norm()).item(),
        "norm_ratio_bootstrap": summarise(bootstrap(original, states, seed)[1]),
        "projections": {kind: projections(each, direction.unit) for kind, each in zip(CLASSES, states, strict=True)},
    }

"""How much does the chosen site depend on the prompts that it was chosen with?

The validation prompts are drawn again with replacement, harmful and harmless ones apart, and
Arditi's rule chooses again (aird/directions/selection.py), also where COSMIC chose the site. The
candidates themselves stay: they rest on the training prompts. Each checkpoint's record of a chosen
direction says so; aird/directions/source_site.py compares two of them. A candidate that was not
scored in full on the real prompts cannot be chosen on resampled ones, so the shares are of a choice
among those that were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypedDict

import torch

from aird.directions.score_records import mean_scores
from aird.directions.selection import select_site
from aird.settings.directions import Directions


class ChosenSite(TypedDict):
    """A site, and the share of the resamples that chose it."""

    layer: int
    position: int
    share: float


class Stability(TypedDict):
    """Which sites Arditi's rule chooses on resampled validation prompts; shares are None where none was chosen."""

    resamples: int
    undefined: int  # resamples in which no candidate had numbers
    same_site: float | None  # share of the others that chose the site of the real prompts
    layer_low: int | None  # 2.5% and 97.5% quantiles of the layers
    layer_high: int | None
    sites: list[ChosenSite]  # the most frequent first


# The smallest p-value of a site that moved is 1 / (1 + RESAMPLES); times the compressions that Holm counts it must
# stay below 5%. 500 would do for 25 compressions.
RESAMPLES = 2000
# Of a site that another rule chose than the one that is resampled.
NOT_RESAMPLED = Stability(resamples=0, undefined=0, same_site=None, layer_low=None, layer_high=None, sites=[])


def site_stability(
    scores: Mapping[str, torch.Tensor], site: tuple[int, int], settings: Directions, seed: int
) -> Stability:
    """Return which sites Arditi's rule chooses on resampled validation prompts.

    Args:
        scores: per prompt, as of `score_candidates`: induce and kl [L, P, harmless prompts], bypass
            [L, P, harmful prompts].
        site: (layer, position) chosen on the real prompts.
        settings: the filters.
        seed: of the resamples.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = len(scores["induce"])
    chosen: Counter[tuple[int, int]] = Counter()
    undefined = 0
    for _ in range(RESAMPLES):
        drawn: dict[str, torch.Tensor] = {}
        for names in (("induce", "kl"), ("bypass",)):
            count = scores[names[0]].shape[-1]
            draw = torch.randint(count, (count,), generator=generator)
            drawn |= {name: scores[name][..., draw] for name in names}
        try:
            selection = select_site(mean_scores(drawn), layers, settings)
        except ValueError:
            undefined += 1
            continue
        chosen[selection.layer, selection.position] += 1
    total = sum(chosen.values())
    if not total:
        return Stability({**NOT_RESAMPLED, "resamples": RESAMPLES, "undefined": undefined})
    drawn_layers = torch.tensor([layer for layer, _ in chosen.elements()], dtype=torch.float64)
    low, high = drawn_layers.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), interpolation="nearest")
    # Equal shares in the order of the sites, so that the record depends on nothing else.
    ordered = sorted(chosen.items(), key=lambda item: (-item[1], item[0]))
    return {
        "resamples": RESAMPLES,
        "undefined": undefined,
        "same_site": chosen[site] / total,
        "layer_low": int(low),
        "layer_high": int(high),
        "sites": [
            {"layer": layer, "position": position, "share": count / total} for (layer, position), count in ordered
        ],
    }

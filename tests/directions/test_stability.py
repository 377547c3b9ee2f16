"""The site's stability over resamples of the validation prompts, on scores made by hand."""

from __future__ import annotations

import torch

from aird.directions.source_site import compare_sites
from aird.directions.stability import RESAMPLES, site_stability
from aird.settings.directions import Directions
from aird.support.statistics import holm

SETTINGS = Directions(harmful="harmful", harmless="harmless", maximum_kl=1.0)
LAYERS, POSITIONS, PROMPTS = 10, 2, 16


def scores(bypass: dict[tuple[int, int], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return prompt scores in which only the given sites were scored in full; all induce refusal, none moves KL."""
    nan = torch.full((LAYERS, POSITIONS, PROMPTS), torch.nan, dtype=torch.float64)
    made = {"induce": nan.clone(), "kl": nan.clone(), "bypass": nan.clone()}
    for site, values in bypass.items():
        made["induce"][site] = 1.0
        made["kl"][site] = 0.0
        made["bypass"][site] = values
    return made


def constant(value: float) -> torch.Tensor:
    return torch.full((PROMPTS,), value, dtype=torch.float64)


def test_a_site_that_is_best_on_every_prompt_is_always_chosen() -> None:
    record = site_stability(scores({(3, -1): constant(-5.0), (4, -2): constant(-4.0)}), (3, -1), SETTINGS, 0)
    assert record == {
        "resamples": RESAMPLES,
        "undefined": 0,
        "same_site": 1.0,
        "layer_low": 3,
        "layer_high": 3,
        "sites": [{"layer": 3, "position": -1, "share": 1.0}],
    }


def test_sites_that_differ_by_noise_share_the_choice() -> None:
    noise = torch.randn(2, PROMPTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise -= noise.mean(dim=1, keepdim=True)
    made = scores({(3, -1): noise[0] - 0.05, (7, -2): noise[1], (8, -1): constant(-9.0)})
    record = site_stability(made, (3, -1), SETTINGS, 0)
    # The third lies beyond the layer limit, int(0.8 x 10).
    assert {(site["layer"], site["position"]) for site in record["sites"]} == {(3, -1), (7, -2)}
    assert 0.4 < record["same_site"] < 0.8
    assert record["sites"][0]["share"] == max(record["same_site"], 1 - record["same_site"])
    assert (record["layer_low"], record["layer_high"]) == (3, 7)
    assert site_stability(made, (3, -1), SETTINGS, 0) == record
    assert site_stability(made, (3, -1), SETTINGS, 1) != record


def test_the_range_of_layers_holds_95_percent_of_the_resamples() -> None:
    """A site of one resample in twenty is in it."""
    noise = torch.randn(2, PROMPTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise -= noise.mean(dim=1, keepdim=True)
    record = site_stability(scores({(3, -1): noise[0] - 0.6, (7, -2): noise[1]}), (3, -1), SETTINGS, 0)
    assert 0.03 < 1 - record["same_site"] < 0.095
    assert (record["layer_low"], record["layer_high"]) == (3, 7)


def test_harmful_prompts_are_drawn_apart_from_harmless_ones() -> None:
    """One class may have lost prompts."""
    made = scores({(3, -1): constant(-5.0)})
    made["bypass"] = made["bypass"][..., :5]
    assert site_stability(made, (3, -1), SETTINGS, 0)["same_site"] == 1


def test_a_resample_without_numbers_is_counted() -> None:
    broken = scores({(3, -1): constant(-5.0)})
    broken["bypass"][:] = torch.nan
    record = site_stability(broken, (3, -1), SETTINGS, 0)
    assert record["undefined"] == RESAMPLES
    assert record["same_site"] is None and record["sites"] == []


def test_a_site_that_surely_moved_is_significant_among_thirty_compressions() -> None:
    directions = []
    for site in ((3, -1), (7, -2)):
        stability = site_stability(scores({site: constant(-5.0)}), site, SETTINGS, 0)
        directions.append({"layer": site[0], "position": site[1], "stability": stability})
    assert holm([compare_sites(*directions)["p_value"]] * 30)[0] < 0.05

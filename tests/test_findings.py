"""The finding in words says what the tables say."""

from __future__ import annotations

import pandas

from aird.findings import findings


def tables() -> tuple[pandas.DataFrame, pandas.DataFrame, pandas.DataFrame, pandas.DataFrame]:
    columns = "suite model compression patch n refusal over_refusal perplexity utility".split()
    summary = pandas.DataFrame(
        [
            ["safety", "m", "original", "plain", 200, 0.95, 0.05, 10.0, 0.8],
            ["safety", "m", "pruned", "plain", 200, 0.50, 0.05, 20.0, 0.7],
            ["safety", "m", "pruned", "aird", 200, 0.70, 0.08, 21.0, 0.69],
        ],
        columns=columns,
    )
    columns = "suite model compression patch against rate n difference lost gained p_value".split()
    paired = pandas.DataFrame(
        [
            ["safety", "m", "pruned", "plain", "original", "refusal", 200, -0.45, 90, 0, 1e-20],
            ["safety", "m", "pruned", "aird", "plain", "refusal", 200, 0.20, 0, 40, 1e-9],
            ["safety", "m", "pruned", "aird", "plain", "over_refusal", 100, 0.03, 0, 3, 0.25],
        ],
        columns=columns,
    )
    columns = (
        "model compression layer position cosine_same_site_shared norm_ratio original_layer original_position".split()
    )
    columns += ["split_half_null_low", "split_half_null_high"]
    columns += ["rule", "resampled_same_site", "cosmic_layer", "cosmic_position", "cosmic_agrees"]
    other = ["relaxed_kl", 0.62, 8, -2, False]
    directions = pandas.DataFrame([["m", "pruned", 9, -1, 0.6, 0.5, 12, -1, 0.9, 0.97, *other]], columns=columns)
    columns = "model suite compression patch claim statement verdict reason".split()
    claims = pandas.DataFrame(
        [
            ["m", "", "pruned", "", "C2", "moves the direction", "holds", ""],
            ["m", "", "pruned", "", "C2", "pruning moves both", "undecided", "so"],
            ["m", "", "all", "", "C2", "pruning moves both", "undecided", "pruned"],
            ["m", "safety", "pruned", "", "C3", "lost where moved", "holds", ""],
            ["m", "safety", "all", "", "C3", "more lost where moved further", "undecided", "too few"],
            ["m", "safety", "pruned", "aird", "C4", "repaired", "does not hold", "so"],
            ["m", "safety", "all", "aird", "C4", "repaired", "does not hold", "pruned"],
            ["m", "other", "all", "aird", "C4", "repaired", "holds", ""],
            ["another", "", "all", "", "C2", "pruning moves both", "holds", ""],
        ],
        columns=columns,
    )
    return summary, paired, directions, claims


def test_a_damaged_and_repaired_checkpoint() -> None:
    original, repaired, pruned, aird, *_ = findings(*tables())
    assert "pruned refuses 50.0%, and 70.0% with aird (over-refusal 8.0%)" in repaired
    assert "refuses 95.0% of 200" in original and "5.0% of the harmless" in original
    assert "pruned changed refusal by -45.0 points (p = 1e-20), to 50.0%" in pruned
    assert "cosine 0.60" in pruned and "below the split-half null (0.90 to 0.97)" in pruned
    assert "source site (9, -1)" in pruned
    assert "aird: +20.0 points of refusal, p = 1e-09; over-refusal +3.0 points, perplexity x 1.050" in aird


def test_what_is_not_measurable_is_called_so() -> None:
    summary, paired, directions, claims = tables()
    paired["p_value"] = 0.4
    directions = directions.assign(layer=12, cosine_same_site_shared=0.95)
    _, _, pruned, aird, *_ = findings(summary, paired, directions, claims)
    assert "did not change refusal measurably" in pruned and "the same source site" in pruned
    assert "within or above the split-half null" in pruned
    assert "(no measurable change)" in aird


def test_every_site_has_a_second_opinion_and_every_claim_its_verdict() -> None:
    assert list(findings(*tables()))[4:] == [
        "  pruned: site (9, -1), by relaxed_kl; resampled prompts choose it in 62.0% of cases; COSMIC chooses (8, -2).",
        "  C2, pruning moves both: UNDECIDED; pruned: undecided.",
        "  C3, more lost where moved further: UNDECIDED (too few); pruned: holds.",
        "  C4, aird, repaired: DOES NOT HOLD; pruned: does not hold.",
    ]

"""Markdown tables of what the workflow found."""

from __future__ import annotations

import math

import pandas

from aird.reporting.markdown import directions_markdown, summary_markdown


def test_summary() -> None:
    row = {"compression": "w4", "patch": "aird", "refusal": 0.5, "refusal_low": 0.4, "refusal_high": 0.6}
    row |= {"asr_wei": 0.25, "degenerate": 0.0, "over_refusal": 0.1, "over_refusal_low": 0.05, "over_refusal_high": 0.2}
    row |= {"perplexity": 3.0, "perplexity_low": 2.5, "perplexity_high": 3.456, "utility": 0.875}
    lines = summary_markdown(pandas.DataFrame([row])).splitlines()
    assert (
        lines[2] == "| w4 | aird | 50.0 (40.0 to 60.0) | 25.0 | 0.0 | 10.0 (5.0 to 20.0) | 3.00 (2.50 to 3.46) | 87.5 |"
    )
    assert len({line.count("|") for line in lines}) == 1


def test_suites_and_models_stand_in_the_summary_where_there_are_several() -> None:
    row = {"compression": "w4", "patch": "plain", "refusal": 0.5, "refusal_low": 0.4, "refusal_high": 0.6}
    row |= {"asr_wei": 0.25, "degenerate": 0.0, "over_refusal": 0.1, "over_refusal_low": 0.05, "over_refusal_high": 0.2}
    row |= {"perplexity": 3.0, "perplexity_low": 2.5, "perplexity_high": 3.456, "utility": math.nan}
    frame = pandas.DataFrame([{**row, "suite": suite, "model": "m"} for suite in ("safety", "transfer")])
    lines = summary_markdown(frame).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [["| safety", "w4"], ["| transfer", "w4"]]
    assert lines[2].endswith("|  |") and len({line.count("|") for line in lines}) == 1


def test_directions() -> None:
    row = {"compression": "original", "layer": 18, "position": -1, "rule": "published", "n_harmful_train": 113}
    row |= {
        "refusal_harmful": 1.0,
        "refusal_harmful_ablated": 0.0,
        "refusal_harmless": 0.1,
        "refusal_harmless_added": 0.7,
    }
    compared = {
        "cosine_same_site": 0.8,
        "cosine_same_site_bootstrap_low": 0.75,
        "cosine_same_site_bootstrap_high": 0.85,
    }
    compared |= {"split_half_null_low": 0.9, "split_half_null_high": 0.95, "norm_ratio": 0.5}
    frame = pandas.DataFrame([{**row, **dict.fromkeys(compared, math.nan)}, {**row, "compression": "w4", **compared}])
    original, compressed = directions_markdown(frame).splitlines()[2:]
    assert original == "| original | (18, -1) | published | 113 | 1 |  | 1 | 100.0, 0.0 | 10.0, 70.0 |"
    assert "| 0.80 (0.75 to 0.85) | 0.90 to 0.95 | 0.50 |" in compressed

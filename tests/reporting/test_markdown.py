"""Markdown tables of what the workflow found."""

from __future__ import annotations

import math

import pandas
from conftest import ROOT

from aird.reporting.markdown import directions_markdown, summary_markdown

ROW: dict[str, object] = {
    **{
        "compression": "w4",
        "patch": "aird",
        "served_as": "adapter",
        "asr_wei": 0.25,
        "degenerate": 0.0,
        "utility": 0.875,
    },
    **{"refusal": 0.5, "refusal_low": 0.4, "refusal_high": 0.6},
    **{"over_refusal": 0.1, "over_refusal_low": 0.05, "over_refusal_high": 0.2},
    **{"perplexity": 3.0, "perplexity_low": 2.5, "perplexity_high": 3.456},
}


def cells(text: str) -> list[list[str]]:
    """Return the cells of a Markdown table, without its heading."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_summary() -> None:
    text = summary_markdown(pandas.DataFrame([ROW]))
    assert cells(text) == [
        [
            "w4",
            "aird",
            "50.0 (40.0 to 60.0)",
            "25.0",
            "0.0",
            "10.0 (5.0 to 20.0)",
            "3.00 (2.50 to 3.46)",
            "87.5",
        ]
    ]
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_the_form_of_patches_stands_in_the_summary_where_there_are_several() -> None:
    plain = {**ROW, "patch": "plain", "served_as": "plain"}
    merged = {**ROW, "compression": "nf4", "served_as": "merged"}
    assert "served as" not in summary_markdown(pandas.DataFrame([plain, ROW]))
    text = summary_markdown(pandas.DataFrame([plain, ROW, merged]))
    assert [row[2] for row in cells(text)] == ["plain", "adapter", "merged"] and "| served as " in text


def test_suites_and_models_stand_in_the_summary_where_there_are_several() -> None:
    frame = pandas.DataFrame(
        [{**ROW, "suite": suite, "model": "m", "utility": math.nan} for suite in ("safety", "transfer")]
    )
    text = summary_markdown(frame)
    assert [row[:2] for row in cells(text)] == [["safety", "w4"], ["transfer", "w4"]]
    assert cells(text)[0][-1] == "" and len({line.count("|") for line in text.splitlines()}) == 1


def test_a_perplexity_that_was_not_measured_is_empty() -> None:
    unknown = dict.fromkeys(("perplexity", "perplexity_low", "perplexity_high"), math.nan)
    text = summary_markdown(pandas.DataFrame([{**ROW, **unknown}, ROW]))
    assert [row[-2] for row in cells(text)] == ["", "3.00 (2.50 to 3.46)"] and "nan" not in text


def test_a_compression_by_another_engine_than_its_original_is_marked() -> None:
    rows = [
        {**ROW, "suite": "safety", "model": "m", "compression": name, "engine": engine}
        for name, engine in (("original", "vLLM"), ("q4", "llama.cpp"), ("w4", "vLLM"))
    ]
    table, note = summary_markdown(pandas.DataFrame(rows)).split("\n\n")
    assert [row[2] for row in cells(table)] == ["vLLM", "llama.cpp", "vLLM"]
    assert note.startswith("q4 of m: llama.cpp served it and vLLM the original") and "apart" in note
    alike = summary_markdown(pandas.DataFrame(rows[::2]))
    assert "engine" not in alike and "\n\n" not in alike


def test_directions() -> None:
    row = {"compression": "original", "layer": 18, "position": -1, "rule": "published", "n_harmful_train": 113}
    row |= {
        "refusal_harmful": 1.0,
        "refusal_harmful_ablated": 0.0,
        "refusal_harmless": 0.1,
        "refusal_harmless_added": 0.7,
    }
    # The uncorrected one is of the prompts that each model kept, its bootstrap of all: no interval around it.
    compared = {
        "cosine_same_site": 0.7,
        "cosine_same_site_corrected": 0.8,
        "cosine_same_site_corrected_low": 0.75,
        "cosine_same_site_corrected_high": 0.85,
        "norm_ratio": 0.5,
    }
    frame = pandas.DataFrame([{**row, **dict.fromkeys(compared, math.nan)}, {**row, "compression": "w4", **compared}])
    text = directions_markdown(frame)
    original, compressed = cells(text)
    assert original == ["original", "(18, -1)", "published", "113", "1", "1", "100.0, 0.0", "10.0, 70.0"]
    assert compressed[4:6] == ["0.80 (0.75 to 0.85)", "0.50"]
    # As docs/results.md shows it.
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert [cell.strip() for cell in text.splitlines()[0].strip("|").split("|")] == [
        cell.strip()
        for line in page.splitlines()
        if "source site" in line and line.startswith("|")
        for cell in line.strip("|").split("|")
    ]
    undefined = frame.assign(cosine_same_site_corrected=math.nan)
    assert cells(directions_markdown(undefined))[1][4] == "none (0.75 to 0.85)"

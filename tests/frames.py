"""Tables of made-up numbers, in the form of results/tables, with every gap that real ones can have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas

from aird.reporting.claims.statement import Proposition, Statement, Subject
from aird.reporting.tables import all_tables
from aird.reporting.verdicts import Verdict
from aird.support.statistics import Estimate

LAYERS, POSITIONS = 10, 3
SMALL = (["tiny"], ["w4a16"], ["aird"])
LARGE = (
    ["tiny-135m", "larger-1b-instruct"],
    ["magnitude-30", "wanda-50", "w4a16", "gptq-w4-group-128"],
    ["aird", "aird-project", "aird-all-blocks", "aird-own", "random-control"],
)
# What is measured beside the completions: nothing.
UTILITY: dict[str, Any] = {"answers": [], "tasks": {}, "questions": {}, "parity": None, "served_as": "plain"}
SUMMARY_COLUMNS, RESTORED_COLUMNS = (
    [column.name for column in all_tables()[name].columns if not column.optional]
    for name in ("summary", "restored_directions")
)
BOUNDS = {"": 0.0, "_low": -0.05, "_high": 0.05}
Grid = tuple[Sequence[str], Sequence[str], Sequence[str]]


def with_bounds(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return values by name, with bounds 0.05 below and above them."""
    return {f"{name}{end}": value + by for name, value in values for end, by in BOUNDS.items()}


def summary_frame(grid: Grid) -> pandas.DataFrame:
    """Return a summary with a different value in every cell; the first rate is 0."""
    models, compressions, patches = grid
    cells = [
        (model, compression, patch)
        for model in models
        for compression in ["original", *compressions]
        for patch in ["plain", *([] if compression == "original" else patches)]
    ]
    rows = []
    for index, (model, compression, patch) in enumerate(cells):
        refusal, over_refusal = index / len(cells), 0.3 * index / len(cells)
        row: dict[str, Any] = dict.fromkeys(SUMMARY_COLUMNS, math.nan)
        row |= {"suite": "safety", "model": model, "compression": compression, "patch": patch, "n": 100}
        row["served_as"] = "plain" if patch == "plain" else "adapter"
        row |= {
            "refusal": refusal,
            "refusal_low": max(refusal - 0.1, 0),
            "refusal_high": min(refusal + 0.08, 1),
        }
        # Rounding: the lower bound of a rate of 0 can come out above it.
        row |= {"over_refusal": over_refusal, "over_refusal_low": over_refusal * 0.9 + 1e-17}
        row |= {"over_refusal_high": over_refusal + 0.05}
        row |= {"perplexity": 10 + index, "perplexity_low": 9 + index, "perplexity_high": 12 + index}
        row |= {"degenerate": 0.01 * refusal, "utility": 0.4 + 0.2 * refusal, "utility_stderr": 0.01}
        # The second checkpoint's engine told no log-probabilities.
        row |= with_bounds([("sensitivity", 3.0 - index / 10), ("auc", math.nan if index == 1 else 0.9 - index / 1000)])
        rows.append(row)
    return pandas.DataFrame(rows, columns=SUMMARY_COLUMNS)


def candidate_frame(grid: Grid) -> pandas.DataFrame:
    """Return candidates with every kind of score: none, induce only, all three, a KL of 0."""
    rows = []
    for model in grid[0]:
        for compression in ["original", *grid[1]]:
            for layer in range(LAYERS):
                for position in range(-POSITIONS, 0):
                    induce = layer - 2.0 + position / 10 if layer < 8 else None
                    scored = induce is not None and induce >= 0
                    kl = 0.01 * (layer - 3) if scored else None
                    bypass = -0.5 * layer - position if scored else None
                    rows.append([model, compression, layer, position, induce, kl, bypass])
    return pandas.DataFrame(rows, columns=["model", "compression", "layer", "position", "induce", "kl", "bypass"])


def direction_frame(grid: Grid) -> pandas.DataFrame:
    """Return one chosen site per pair; the null is known for compressed models only, as in the table."""
    rows = []
    for model in grid[0]:
        for index, compression in enumerate(["original", *grid[1]]):
            null = (math.nan, math.nan) if compression == "original" else (0.9, 0.97)
            rule = "relaxed_kl" if index == 1 else "published"
            rows.append([model, compression, 4 + index % 3, -1 - index % POSITIONS, rule, *null])
    columns = ["model", "compression", "layer", "position", "rule", "split_half_null_low", "split_half_null_high"]
    return pandas.DataFrame(rows, columns=columns)


def site_frame(grid: Grid) -> pandas.DataFrame:
    """Return a comparison at every site; at layer 0 there is no direction."""
    rows = [
        [model, name, layer, position, *((0.0, math.nan) if layer == 0 else (1 - layer / 20, 1 + index / 10))]
        for model in grid[0]
        for index, name in enumerate(grid[1])
        for layer in range(LAYERS)
        for position in range(-POSITIONS, 0)
    ]
    return pandas.DataFrame(rows, columns=["model", "compression", "layer", "position", "cosine", "norm_ratio"])


def restored_frame(grid: Grid) -> pandas.DataFrame:
    """Return the comparison of every patched checkpoint; a plain compressed one has no rate with r ablated."""
    models, compressions, patches = grid
    rows = []
    for model in models:
        cells = [("original", "plain"), *((name, patch) for name in compressions for patch in ["plain", *patches])]
        for index, (compression, patch) in enumerate(cells):
            row: dict[str, Any] = dict.fromkeys(RESTORED_COLUMNS, math.nan)
            row |= {"model": model, "compression": compression, "patch": patch, "layer": 4, "position": -1}
            cosine = 1.0 if compression == "original" else 0.5 + index / 100
            row |= {"corrected_cosine": cosine, "corrected_cosine_low": cosine - 0.1, "corrected_cosine_high": cosine}
            row |= {"norm_ratio": cosine, "norm_ratio_low": cosine - 0.1, "norm_ratio_high": cosine + 0.1}
            row |= {"separation": 3.0, "refusal_harmful": 0.9}
            if patch != "plain":
                row |= {"cosine_gain": 0.125, "cosine_gain_low": -0.25, "cosine_gain_high": 0.5}
            if patch != "plain" or compression == "original":
                names = ("refusal_harmful_ablated", "refusal_harmful_ablated_low", "refusal_harmful_ablated_high")
                row |= dict(zip(names, (0.25, 0.2, 0.3), strict=True))
            rows.append(row)
    return pandas.DataFrame(rows, columns=RESTORED_COLUMNS)


def compensation_frame(grid: Grid) -> pandas.DataFrame:
    """Return the shares of two kinds of matrix in two blocks, for every patched compression."""
    rows = []
    for model in grid[0]:
        for cell in ({"model": model, "compression": name, "patch": patch} for name in grid[1] for patch in grid[2]):
            for block, kind in enumerate(["o_proj", "down_proj"] * 2):
                module = f"model.layers.{block // 2}.mlp.{kind}"
                rows.append({**cell, "module": module, "first_share": block / 10, "first_8_share": block / 5})
    return pandas.DataFrame(rows, columns=["model", "compression", "patch", "module", "first_share", "first_8_share"])


def claim_frame(grid: Grid) -> pandas.DataFrame:
    """Return a row per claim, compression and patch, and one over all compressions, with every verdict."""
    models, compressions, patches = grid
    verdicts = ("holds", "does not hold", "undecided")
    asked = [(Proposition.MEDIATES, "", ""), (Proposition.KEPT_OR_MOVED, "", ""), (Proposition.FOLLOWS, "safety", "")]
    asked += [(Proposition.REPAIRED, "safety", patch) for patch in patches]
    rows: list[dict[str, object]] = []
    for model in models:
        for proposition, suite, patch in asked:
            for compression in [*compressions, "all"]:
                # C3 asks another question over all compressions.
                further = proposition is Proposition.FOLLOWS and compression == "all"
                said = Proposition.FURTHER if further else proposition
                verdict = Verdict(verdicts[len(rows) % 3])
                subject, needed = (
                    Subject(model, compression, suite, patch),
                    310 if verdict.name == "undecided" else None,
                )
                estimate = Estimate(0.1, math.nan, math.nan)
                rows.append(Statement(said, subject, verdict, "a test", estimate=estimate, needed=needed).row())
    return pandas.DataFrame(rows).astype({"needed": "Int64"})


def attack_frames(summary: pandas.DataFrame) -> dict[str, pandas.DataFrame]:
    """Return the tables attacks and resistance of two attacks on every cell of a summary."""
    cells = ["suite", "model", "compression", "patch"]
    asr = {"n": 50, "asr_arditi": 0.5, "asr_arditi_low": 0.4, "asr_arditi_high": 0.6}
    attacks = pandas.concat(
        [summary[cells].assign(attack=attack, **asr) for attack in ("none", "prefill", "again")], ignore_index=True
    )
    compressed = summary.loc[summary["compression"] != "original", cells]
    tests = {
        "n": 50,
        "reference": 0.4,
        "rate": 0.5,
        "difference": 0.1,
        "low": 0.02,
        "high": 0.2,
        "lost": 1,
        "gained": 6,
        "p_value": 0.125,
    }
    rows = [
        compressed.assign(attack=attack, against=against, **tests, verdict=verdict if against == "original" else None)
        for attack, verdict in (("prefill", None), ("again", None), ("all", "undecided"))
        for against in ("plain", "original")
    ]
    return {"attacks": attacks, "resistance": pandas.concat(rows)}


def write_tables(folder: Path, grid: Grid, attacked: bool = False) -> list[Path]:
    """Write the tables of a grid as CSV files and return them; those of attacks are empty unless it is `attacked`."""
    summary = summary_frame(grid)
    cells = ["suite", "model", "compression", "patch"]
    rates = summary[[*cells, "n", "refusal", "refusal_low", "refusal_high"]].assign(rate="refusal")
    compressed = summary[summary["compression"] != "original"]
    paired = pandas.concat(
        compressed[cells].assign(against=against, rate=rate, n=100, difference=0.05, lost=1, gained=6, p_value=0.125)
        for against in ("original", "plain")
        for rate in ("refusal", "over_refusal")
    )
    told = [("agreement", 0.9), ("auc_change", -0.1), ("sensitivity_change", -0.5), ("threshold_change", 0.2)]
    told += [("auc_restored", 0.25), ("sensitivity_restored", 0.75)]
    paired = paired.assign(kind_of_loss="it refuses less of everything", **with_bounds(told))
    directions = direction_frame(grid)
    compared = directions["compression"] != "original"
    rates_held_out = "harmful harmful_ablated harmless harmless_added".split()
    directions = directions.assign(
        cosine_same_site=0.8,
        cosine_same_site_shared=0.8,
        cosine_same_site_corrected=0.85,
        cosine_same_site_corrected_low=0.75,
        cosine_same_site_corrected_high=0.95,
        norm_ratio=0.9,
        original_layer=4,
        original_position=-1,
        resampled_same_site=0.75,
        cosmic_layer=4,
        cosmic_position=-1,
        cosmic_agrees=directions["layer"] == 4,
        **{f"refusal_{name}": 0.25 * index for index, name in enumerate(rates_held_out)},
    )
    of_comparisons = [name for name in directions if name.startswith(("cosine_same", "norm_ratio", "original_"))]
    directions.loc[~compared, of_comparisons] = math.nan
    made = {
        "summary": summary,
        "claims": claim_frame(grid),
        "rates": rates,
        "paired": paired,
        **{name: frame if attacked else frame.head(0) for name, frame in attack_frames(summary).items()},
        "directions": directions,
        "sites": site_frame(grid),
        "restored_directions": restored_frame(grid),
        "compensation": compensation_frame(grid),
        "candidates": candidate_frame(grid),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in made.items():
        frame.to_csv(folder / f"{name}.csv", index=False)
    return [folder / f"{name}.csv" for name in made]

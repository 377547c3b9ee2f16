"""Collect the nodes' records into tidy tables: one kind of result per table, one observation per row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas

from aird.settings.base import ORIGINAL, PLAIN
from aird.support.statistics import mcnemar

Cell = tuple[str, str, str]  # model, compression, patch

SUMMARY_COLUMNS = (
    "suite model compression patch n refusal refusal_low refusal_high asr_arditi asr_wei asr_arditi_coherent "
    "asr_classifier degenerate over_refusal over_refusal_low over_refusal_high perplexity perplexity_low "
    "perplexity_high utility utility_stderr cosine_same_site cosine_own_source norm_ratio layer position sparsity "
    "bits_per_weight"
).split()

# Of a comparison: what stands in the summary.
SUMMARISED = ("cosine_same_site", "cosine_own_source", "norm_ratio")
# Of a comparison: numbers, and {"mean", "low", "high"} of resamples or of a null.
COMPARED = (
    "cosine_same_site cosine_own_source norm_ratio cosine_same_site_shared cosine_own_source_shared "
    "cosine_same_site_p_value cosine_own_source_p_value"
).split()
COMPARED_INTERVALS = (
    "cosine_same_site_bootstrap split_half_null cosine_own_source_bootstrap own_source_null norm_ratio_bootstrap"
).split()
SITE = ("layer", "position")
COSMIC = (*SITE, *"rule score addition ablation kl".split())


def summary(
    scores: Mapping[tuple[str, Cell], dict[str, Any]],
    directions: Mapping[tuple[str, str], dict[str, Any]],
    comparisons: Mapping[tuple[str, str], dict[str, Any]],
    manifests: Mapping[tuple[str, str], dict[str, Any]],
) -> pandas.DataFrame:
    """Return one row per suite, model, compression and patch; columns as in SUMMARY_COLUMNS.

    Args:
        scores: (suite, cell) to the record of the scores node.
        directions: (model, compression) to the record of the chosen direction.
        comparisons: (model, compression) to the comparison; the original has none and gets 1.
        manifests: (model, compression) to the checkpoint's manifest.

    Cells of records other than scores that are not there stay empty.
    """
    rows = []
    for (suite, cell), score in scores.items():
        model, compression, patch = cell
        pair = (model, compression)
        found, direction = score["rates"], directions.get(pair, {})
        # The original agrees with itself.
        comparison = dict.fromkeys(SUMMARISED, 1.0) if compression == ORIGINAL else comparisons.get(pair, {})
        perplexity = score["perplexity"] or {"perplexity": math.nan, "low": math.nan, "high": math.nan}
        utility, stderr = mean_utility(score["tasks"])
        total = manifests.get(pair, {}).get("total", {})
        rows.append(
            {
                "suite": suite,
                "model": model,
                "compression": compression,
                "patch": patch,
                "n": found["refusal"]["n"],
                **{name: found[name]["rate"] for name in found},
                "refusal_low": found["refusal"]["low"],
                "refusal_high": found["refusal"]["high"],
                "over_refusal_low": found["over_refusal"]["low"],
                "over_refusal_high": found["over_refusal"]["high"],
                "perplexity": perplexity["perplexity"],
                "perplexity_low": perplexity["low"],
                "perplexity_high": perplexity["high"],
                "utility": utility,
                "utility_stderr": stderr,
                # The direction is the base's own: a patch does not move it.
                **{name: comparison.get(name) for name in SUMMARISED},
                "layer": direction.get("layer"),
                "position": direction.get("position"),
                "sparsity": total.get("sparsity"),
                "bits_per_weight": total.get("bits_per_weight"),
            }
        )
    return pandas.DataFrame(rows, columns=SUMMARY_COLUMNS)


def mean_utility(tasks: Mapping[str, Mapping[str, float]]) -> tuple[float, float]:
    """Return the mean accuracy over tasks and its standard error; NaN without a task.

    Of each task the length-normalised accuracy is taken where it has none other, else `acc`.
    """
    chosen = [
        (metrics[name], metrics.get(f"{name}_stderr", math.nan))
        for metrics in tasks.values()
        if (name := next((name for name in ("acc", "acc_norm", "exact_match", "f1") if name in metrics), None))
    ]
    if not chosen:
        return math.nan, math.nan
    values, errors = zip(*chosen, strict=True)
    return sum(values) / len(values), math.sqrt(sum(error**2 for error in errors)) / len(errors)


def rates_table(scores: Mapping[tuple[str, Cell], dict[str, Any]]) -> pandas.DataFrame:
    """Return every rate of every cell: suite, model, compression, patch, rate, n, value, low, high."""
    rows = [
        [suite, *cell, name, found["n"], found["rate"], found["low"], found["high"]]
        for (suite, cell), score in scores.items()
        for name, found in score["rates"].items()
    ]
    return pandas.DataFrame(rows, columns="suite model compression patch rate n value low high".split())


def utility_table(scores: Mapping[tuple[str, Cell], dict[str, Any]]) -> pandas.DataFrame:
    """Return every task metric of every cell: suite, model, compression, patch, task, metric, value."""
    rows = [
        [suite, *cell, task, metric, value]
        for (suite, cell), score in scores.items()
        for task, metrics in score["tasks"].items()
        for metric, value in metrics.items()
    ]
    return pandas.DataFrame(rows, columns="suite model compression patch task metric value".split())


def paired_table(scores: Mapping[tuple[str, Cell], dict[str, Any]]) -> pandas.DataFrame:
    """Return paired comparisons over the same prompts, by McNemar's exact test.

    Each compressed checkpoint against the original (`against` = original), and each patched one
    against its own plain checkpoint (`against` = plain), for refusal and over-refusal; where those
    are not there, neither is the row.
    """
    rows = []
    for (suite, cell), score in scores.items():
        model, compression, patch = cell
        references = {}
        if patch != PLAIN:
            references["plain"] = (suite, (model, compression, PLAIN))
        if compression != ORIGINAL:
            references["original"] = (suite, (model, ORIGINAL, PLAIN))
        for name, key in references.items():
            if key not in scores:
                continue
            for rate, kind in (("refusal", "harmful"), ("over_refusal", "harmless")):
                before = [row["refused"] for row in scores[key]["labels"] if row["kind"] == kind]
                after = [row["refused"] for row in score["labels"] if row["kind"] == kind]
                lost, gained, p_value = mcnemar(before, after)
                difference = (sum(after) - sum(before)) / len(before)
                rows.append([suite, *cell, name, rate, len(before), difference, lost, gained, p_value])
    columns = "suite model compression patch against rate n difference lost gained p_value".split()
    return pandas.DataFrame(rows, columns=columns)


def directions_table(
    directions: Mapping[tuple[str, str], dict[str, Any]],
    comparisons: Mapping[tuple[str, str], dict[str, Any]],
    verifications: Mapping[tuple[str, str], dict[str, Any]],
    cosmic: Mapping[tuple[str, str], dict[str, Any]],
) -> pandas.DataFrame:
    """Return one row per (model, compression): the site, how it was chosen, its comparison, claim C1, COSMIC's site.

    Cells of other records than the direction's own that are not there stay empty.
    """
    rows = []
    for (model, compression), record in directions.items():
        comparison = comparisons.get((model, compression))
        row: dict[str, Any] = {"model": model, "compression": compression}
        row |= {name: record[name] for name in "layer position rule survivors kl_limit induce kl bypass norm".split()}
        row |= _stability(record["stability"])
        other = cosmic.get((model, compression))
        row |= {f"cosmic_{name}": other and other[name] for name in COSMIC}
        row["cosmic_agrees"] = other and [other[name] for name in SITE] == [record[name] for name in SITE]
        row |= {f"n_{name}": counts["used"] for name, counts in record["prompts"].items()}
        row |= {f"filtered_{name}": counts["filtered"] for name, counts in record["prompts"].items()}
        if comparison is not None:
            row |= {name: comparison[name] for name in COMPARED}
            row |= {f"original_{name}": value for name, value in comparison["site"].items()}
            for name in COMPARED_INTERVALS:
                row |= {f"{name}_{key}": value for key, value in comparison[name].items()}
            row |= _separations(comparison["projections"])
        verification = verifications.get((model, compression))
        if verification is not None:
            for name, rate in verification["rates"].items():
                row |= {f"refusal_{name}": rate["refusal"], f"degenerate_{name}": rate["degenerate"]}
            row |= {name: verification[name] for name in ("ablation_p_value", "addition_p_value")}
        rows.append(row)
    if not rows:
        return pandas.DataFrame(columns=["model", "compression", *SITE])
    # With empty cells, whole numbers would become fractions.
    whole = {"cosmic_layer": "Int64", "cosmic_position": "Int64", "cosmic_agrees": "boolean"}
    return pandas.DataFrame(rows).astype(whole)


def _stability(stability: Mapping[str, Any]) -> dict[str, Any]:
    """Return what resampled validation prompts choose: the same site how often, which sites, which layers."""
    sites = "; ".join(
        f"({site['layer']}, {site['position']}) {100 * site['share']:.0f}%" for site in stability["sites"][:3]
    )
    names = ("same_site", "layer_low", "layer_high")
    return {f"resampled_{name}": stability[name] for name in names} | {"resampled_sites": sites}


def _separations(projections: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return, along both directions, how far the compressed model's classes are apart, in standard deviations.

    Also the original's along its own direction, as what to compare with.
    """
    found = {(row["states_of"], row["direction"], row["kind"]): row for row in projections}
    separations = {}
    for name, whose, direction in (
        ("separation_on_original", "compressed", "original"),
        ("separation_on_own", "compressed", "own"),
        ("original_separation", "original", "original"),
    ):
        harmful, harmless = (found[whose, direction, kind] for kind in ("harmful", "harmless"))
        spread = math.sqrt((harmful["standard_deviation"] ** 2 + harmless["standard_deviation"] ** 2) / 2)
        separations[name] = (harmful["mean"] - harmless["mean"]) / spread if spread else math.nan
    return separations


def projections_table(comparisons: Mapping[tuple[str, str], dict[str, Any]]) -> pandas.DataFrame:
    """Return the activations' component along both directions: whose, of which prompts, at which site."""
    rows = [
        {"model": model, "compression": compression, **row}
        for (model, compression), comparison in comparisons.items()
        for row in comparison["projections"]
    ]
    columns = "model compression states_of kind direction layer position n mean standard_deviation".split()
    return pandas.DataFrame(rows, columns=columns)


def sites_table(comparisons: Mapping[tuple[str, str], dict[str, Any]]) -> pandas.DataFrame:
    """Return cosine and norm ratio with the original at every site of every compressed model."""
    rows = [
        {"model": model, "compression": compression, **site}
        for (model, compression), comparison in comparisons.items()
        for site in comparison["sites"]
    ]
    return pandas.DataFrame(rows, columns="model compression layer position cosine norm_ratio".split())


def candidates_table(scores: Mapping[tuple[str, str], pandas.DataFrame]) -> pandas.DataFrame:
    """Return what adding and ablating does at every candidate site of every checkpoint.

    Args:
        scores: (model, compression) to layer, position, induce, kl, bypass.
    """
    columns = "model compression layer position induce kl bypass".split()
    frames = [frame.assign(model=model, compression=compression) for (model, compression), frame in scores.items()]
    return pandas.concat(frames)[columns] if frames else pandas.DataFrame(columns=columns)


def patches_table(statistics: Mapping[Cell, dict[str, Any]]) -> pandas.DataFrame:
    """Return one row per edited matrix of every patch."""
    rows = [
        {
            **dict(zip(("model", "compression", "patch"), cell, strict=True)),
            **edit,
            "adapter_bytes": record["adapter_bytes"],
        }
        for cell, record in statistics.items()
        for edit in record["edits"]
    ]
    columns = "model compression patch module relative_change row_norm_before row_norm_after adapter_bytes".split()
    return pandas.DataFrame(rows, columns=columns)


def compressions_table(manifests: Mapping[tuple[str, str], dict[str, Any]]) -> pandas.DataFrame:
    """Return measured sparsity, bits per weight, error and formats of every checkpoint; empty for the original."""
    rows = []
    for (model, compression), manifest in manifests.items():
        total = dict(manifest.get("total", {}))
        total["formats"] = ", ".join(total.get("formats", []))
        served_as = manifest.get("served_as")  # of ready-made checkpoints
        rows.append({"model": model, "compression": compression, "served_as": served_as, **total})
    columns = "model compression sparsity bits_per_weight sparse_bits_per_weight relative_error weights stored_bytes "
    columns += "formats served_as"
    return pandas.DataFrame(rows, columns=columns.split())


def merged_table(records: Mapping[Cell, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]) -> pandas.DataFrame:
    """Return what compression bought, before and after a patch is merged into the checkpoint.

    Args:
        records: per cell the compressed checkpoint's manifest, the patch's statistics and the merged
            checkpoint's manifest.

    Returns:
        One row per cell: size of the adapter in bytes, number of edited matrices, mean share of their zeros
        that the edit filled (None where nothing was zero), and sparsity, bits per weight and stored bytes of
        all compressed matrices, plain, with the adapter beside them (bits only) and merged.
    """
    rows = []
    for cell, (base, statistics, merged) in records.items():
        before, after = base["total"], merged["total"]
        filled = list(merged["zeros_filled"].values())
        kept = before["stored_bytes"] + statistics["adapter_bytes"]
        rows.append(
            {
                **dict(zip(("model", "compression", "patch"), cell, strict=True)),
                "adapter_bytes": statistics["adapter_bytes"],
                "edited_matrices": len(merged["zeros_filled"]),
                "zeros_filled": sum(filled) / len(filled) if filled else None,
                "sparsity": before["sparsity"],
                "sparsity_merged": after["sparsity"],
                "bits_per_weight": before["bits_per_weight"],
                "bits_per_weight_with_adapter": 8 * kept / before["weights"],
                "bits_per_weight_merged": after["bits_per_weight"],
                "stored_bytes": before["stored_bytes"],
                "stored_bytes_merged": after["stored_bytes"],
            }
        )
    return pandas.DataFrame(rows)


def describe(frame: pandas.DataFrame, columns: Sequence[str]) -> str:
    """Return some columns of a table as aligned text for a terminal."""
    shown = frame[list(columns)]
    return str(shown.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep="-"))

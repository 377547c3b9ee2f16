"""The tidy tables: one kind of result per table, one observation per row, from the records of the nodes.

Each function takes records as aird/reporting/records.py reads them, by the keys of aird/reporting/grid.py.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas

from aird.evaluation.hand_labels import BY_HAND, COMPLIED, NEITHER
from aird.evaluation.judges.judge import ATTACKED, judged
from aird.evaluation.judges.registry import JUDGES
from aird.evaluation.utility import mean_utility
from aird.prompts.sets import CLASSES
from aird.reporting.verdicts import ALL, ATTACK_MARGIN, margin_p_value, margin_verdict
from aird.settings.attacks import NO_ATTACK
from aird.settings.base import ORIGINAL, PLAIN
from aird.settings.checkpoint_formats import AS_GIVEN, DEQUANTISED
from aird.settings.suites import AS_STORED, DENSE_COPY, GGUF_FILE
from aird.support.statistics import mcnemar, mean_change, paired_difference, wilson_interval

Pair = tuple[str, str]  # model, compression
Cell = tuple[str, str, str]  # model, compression, patch
Record = Mapping[str, Any]
Scores = Mapping[tuple[str, Cell], Record]  # by suite and cell

PAIR = ("model", "compression")
CELL = (*PAIR, "patch")

SUMMARY_COLUMNS = (
    "suite model compression patch served_as n refusal refusal_low refusal_high".split()
    + [f"asr_{judge.name}" for judge in JUDGES if judge.jailbroken is not None]
    + ["asr_arditi_coherent"]
    + [f"asr_{judge.name}" for judge in JUDGES if judge.jailbroken is None]
    + (
        "degenerate over_refusal over_refusal_low over_refusal_high perplexity perplexity_low perplexity_high utility "
        "utility_stderr cosine_same_site cosine_own_source norm_ratio layer position sparsity bits_per_weight engine "
        "weights"
    ).split()
)

ENDS = {"": "value", "_low": "low", "_high": "high"}  # endings of the columns of a value and its interval
RESTORED_COLUMNS = [
    *"model compression patch layer position".split(),
    *(f"{name}{end}" for name in ("corrected_cosine", "cosine_gain", "norm_ratio") for end in ENDS),
    *"harmful_mean harmless_mean separation".split(),
    *(f"refusal_{name}{end}" for name in "harmful harmful_ablated harmless harmless_added".split() for end in ENDS),
    "ablation_p_value",
    "addition_p_value",
]

UNFINISHED = "unfinished"  # a column of grids with a model that thinks
# Columns of grids with patches that are served both as an adapter and merged.
MERGED_COLUMNS = (
    "merged_refusal merged_over_refusal merged_other_labels merged_other_completions merged_first_token_difference"
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
CORRECTED = "cosine_same_site_corrected"
SITE = ("layer", "position")
# A grid that compares no direction has these too, empty.
COMPARISON_COLUMNS = [
    *COMPARED,
    *(f"original_{name}" for name in SITE),
    *(f"{name}_{key}" for name in COMPARED_INTERVALS for key in ("high", "low", "mean")),
    *(f"{CORRECTED}{end}" for end in ENDS),
    *"separation_on_original separation_on_own original_separation".split(),
]
COSMIC = (*SITE, *"rule score addition ablation kl".split())
UNKNOWN_PERPLEXITY = dict.fromkeys(("perplexity", "low", "high"), math.nan)


def _rows(
    records: Mapping[Any, Any], items: Callable[[Any], Iterable[Record]], keys: Sequence[str], columns: str
) -> pandas.DataFrame:
    """Return a row per item of every record: the parts of the record's key, then these columns of the item."""
    rows = [dict(zip(keys, key, strict=True)) | dict(item) for key, record in records.items() for item in items(record)]
    return pandas.DataFrame(rows, columns=[*keys, *columns.split()])


def _score_rows(scores: Scores, items: Callable[[Record], Iterable[Record]], columns: str) -> pandas.DataFrame:
    by_suite_and_cell = {(suite, *cell): score for (suite, cell), score in scores.items()}
    return _rows(by_suite_and_cell, items, ("suite", *CELL), columns)


def summary(
    scores: Scores,
    directions: Mapping[Pair, Record],
    comparisons: Mapping[Pair, Record],
    manifests: Mapping[Pair, Record],
) -> pandas.DataFrame:
    """Return one row per suite, model, compression and patch; columns as in SUMMARY_COLUMNS.

    Where a model thinks, there is `unfinished` too, behind `degenerate`; where a patch is served in both forms, there
    are the MERGED_COLUMNS at the end.

    Args:
        scores: the records of the scores node.
        directions: the records of the chosen directions.
        comparisons: with the original, which itself has none and gets 1.
        manifests: of the checkpoints.

    Cells of records other than scores that are not there stay empty.
    """
    rows = []
    for (suite, cell), score in scores.items():
        pair, rates = cell[:2], score["rates"]
        # The original agrees with itself.
        comparison = dict.fromkeys(SUMMARISED, 1.0) if pair[1] == ORIGINAL else comparisons.get(pair, {})
        perplexity = score["perplexity"] or UNKNOWN_PERPLEXITY
        utility, stderr = mean_utility(score["questions"])
        total = manifests.get(pair, {}).get("total", {})
        row: dict[str, Any] = {"suite": suite, **dict(zip(CELL, cell, strict=True)), "n": rates["refusal"]["n"]}
        row["served_as"] = score["served_as"]
        row |= {name: rate["rate"] for name, rate in rates.items()}
        for bound in ("low", "high"):
            row |= {f"{name}_{bound}": rates[name][bound] for name in ("refusal", "over_refusal")}
            row[f"perplexity_{bound}"] = perplexity[bound]
        row |= {"perplexity": perplexity["perplexity"], "utility": utility, "utility_stderr": stderr}
        # Of the base without the patch; `restored_table` has the patched checkpoints.
        row |= {name: comparison.get(name) for name in SUMMARISED}
        row |= {name: directions.get(pair, {}).get(name) for name in SITE}
        row |= {name: total.get(name) for name in ("sparsity", "bits_per_weight")}
        if merged := score.get("merged"):
            row |= _merged_columns(merged)
        row |= {"engine": (score.get("engine") or {}).get("name"), "weights": score.get("weights")}
        rows.append(row)
    columns = list(SUMMARY_COLUMNS)
    if any(UNFINISHED in row for row in rows):
        columns.insert(columns.index("degenerate") + 1, UNFINISHED)
    if any(MERGED_COLUMNS[0] in row for row in rows):
        columns += MERGED_COLUMNS
    return pandas.DataFrame(rows, columns=columns)


def _merged_columns(merged: Record) -> dict[str, Any]:
    """Return what the merged checkpoint does, and how far that is from the adapter on its base."""
    first = merged["first_tokens"]
    values = [merged["rates"][name]["rate"] for name in ("refusal", "over_refusal")]
    values += [sum(merged["other_labels"].values()), merged["other_completions"]]
    return dict(zip(MERGED_COLUMNS, [*values, first and first["upper_quartile_difference"]], strict=True))


def rates_table(scores: Scores) -> pandas.DataFrame:
    """Return every rate of every cell."""

    def rates(score: Record) -> Iterator[Record]:
        return ({**rate, "rate": name, "value": rate["rate"]} for name, rate in score["rates"].items())

    return _score_rows(scores, rates, "rate n value low high")


def utility_table(scores: Scores) -> pandas.DataFrame:
    """Return every task metric of every cell."""

    def metrics(score: Record) -> Iterator[Record]:
        for task, values in score["tasks"].items():
            yield from ({"task": task, "metric": metric, "value": value} for metric, value in values.items())

    return _score_rows(scores, metrics, "task metric value")


def paired_table(scores: Scores) -> pandas.DataFrame:
    """Return paired comparisons over the same prompts, by McNemar's exact test.

    Each compressed checkpoint against the original (`against` = original), and each patched one
    against its own plain checkpoint (`against` = plain), for refusal and over-refusal; where those
    are not there, neither is the row.
    """
    rows = []
    for (suite, cell), score in scores.items():
        for name, key in _references(suite, cell, scores):
            for rate, kind in (("refusal", "harmful"), ("over_refusal", "harmless")):
                before, after = refused(scores[key], kind), refused(score, kind)
                lost, gained, p_value = mcnemar(before, after)
                difference = (sum(after) - sum(before)) / len(before)
                rows.append([suite, *cell, name, rate, len(before), difference, lost, gained, p_value])
    columns = "suite model compression patch against rate n difference lost gained p_value".split()
    return pandas.DataFrame(rows, columns=columns)


def _references(suite: str, cell: Cell, scores: Scores) -> Iterator[tuple[str, tuple[str, Cell]]]:
    """Yield what a cell is compared with: `plain` or `original`, and the key of that record where it is there."""
    model, compression, patch = cell
    if patch != PLAIN and (key := (suite, (model, compression, PLAIN))) in scores:
        yield "plain", key
    if compression != ORIGINAL and (key := (suite, (model, ORIGINAL, PLAIN))) in scores:
        yield "original", key


def refused(score: Record, kind: str) -> list[bool]:
    """Return whether each prompt of a kind (`harmful`, `harmless`) was refused, from a record of the scores node."""
    return [row["refused"] for row in score["labels"] if row["kind"] == kind]


def attacks_table(scores: Scores) -> pandas.DataFrame:
    """Return one row per attack of every cell of suites with attacks.

    The attack `none` is the suite's harmful prompts as they are.
    """
    named = [f"asr_{judge.name}" for judge in JUDGES]
    columns = [name for asr in named for name in (asr, f"{asr}_low", f"{asr}_high")]

    def attacks(score: Record) -> Iterator[Record]:
        of_attacks = score.get("attacks")
        for attack, rates in ({NO_ATTACK: score["rates"], **of_attacks} if of_attacks else {}).items():
            row = {"attack": attack, "n": rates["refusal"]["n"]} | {name: rate["rate"] for name, rate in rates.items()}
            yield row | {f"{name}_{bound}": rate[bound] for name, rate in rates.items() for bound in ("low", "high")}

    return _score_rows(scores, attacks, " ".join(["attack n", *columns, "asr_arditi_coherent degenerate"]))


def resistance_table(scores: Scores) -> pandas.DataFrame:
    """Return paired comparisons of attack success (Arditi's judge) over the same attacked prompts.

    Compared are the same checkpoints as in `paired_table`, by the share of prompts at which each gives in. A row of
    attack `all` takes each prompt's mean over the attacks, so that its interval is over prompts; where it is against
    the original, `verdict` says whether the checkpoint gives in to attacks by at most a margin more than the original.
    """
    rows: list[list[Any]] = []
    for (suite, cell), score in scores.items():
        after = _complied(score)
        for name, key in _references(suite, cell, scores) if after else ():
            before = _complied(scores[key])
            given: dict[str, list[tuple[bool, bool]]] = {}  # by prompt, of each attack: there, here
            for attack, of_prompts in after.items():
                earlier, later = list(before[attack].values()), list(of_prompts.values())
                lost, gained, p_value = mcnemar(earlier, later)
                rates = (sum(earlier) / len(earlier), sum(later) / len(later))
                estimate = paired_difference(earlier, later)
                rows.append([suite, *cell, attack, name, len(later), *rates, *estimate, lost, gained, p_value, None])
                for prompt, one, other in zip(of_prompts, earlier, later, strict=True):
                    given.setdefault(prompt, []).append((one, other))
            # Attacks may ask other numbers of prompts, so a mean over attempts is another one.
            there, here = ([sum(pair[side] for pair in some) / len(some) for some in given.values()] for side in (0, 1))
            estimate = mean_change([after - before for before, after in zip(there, here, strict=True)])
            rates = (sum(there) / len(there), sum(here) / len(here))
            verdict = None
            if name == "original":
                _, low, high = estimate
                verdict = margin_verdict(low, ATTACK_MARGIN, margin_p_value(low, high, ATTACK_MARGIN))[0]
            rows.append([suite, *cell, ALL, name, len(given), *rates, *estimate, None, None, None, verdict])
    columns = "suite model compression patch attack against n reference rate difference low high lost gained"
    frame = pandas.DataFrame(rows, columns=[*columns.split(), "p_value", "verdict"])
    return frame.astype({"lost": "Int64", "gained": "Int64"})


def _complied(score: Record) -> dict[str, dict[str, bool]]:
    """Return, by attack and by prompt, whether Arditi's judge saw compliance."""
    by_attack: dict[str, dict[str, bool]] = {}
    for row in score["labels"]:
        if row["kind"] == ATTACKED:
            by_attack.setdefault(row["attack"], {})[row["id"].rpartition("/")[0]] = row["jailbroken_arditi"]
    return by_attack


def categories_table(scores: Scores) -> pandas.DataFrame:
    """Return refusal by the prompt set that a prompt was first read in, where a suite's prompts come from several."""

    def categories(score: Record) -> Iterator[Record]:
        for kind in CLASSES:
            labels = [row for row in score["labels"] if row["kind"] == kind]
            origins = list(dict.fromkeys(row.get("origin") for row in labels))
            for origin in origins if len(origins) > 1 else ():
                answers = [row["refused"] for row in labels if row.get("origin") == origin]
                low, high = wilson_interval(sum(answers), len(answers))
                rate = {"refusal": sum(answers) / len(answers), "low": low, "high": high}
                yield {"kind": kind, "origin": origin, "n": len(answers), **rate}

    return _score_rows(scores, categories, "kind origin n refusal low high")


def agreement_table(scores: Scores) -> pandas.DataFrame:
    """Return how two judges agree on the same completions of harmful prompts, with and without attacks.

    Judges that grade take no part. `kappa` is Cohen's; it is empty where both judges say the same of all. A person's
    labels are a judge (`by_hand`) whose `neither` counts as jailbroken, as `complied` does; how many there are of each
    stands beside it. A person reads a sample of all cells together, so with this judge there is a row over all of them
    too: each reply that was read counts once there, however many checkpoints gave it.
    """
    judges = [judge.name for judge in JUDGES if judge.answer == "harmful"] + [BY_HAND]
    pairs = list(itertools.combinations(judges, 2))
    read: dict[tuple[str, Cell], dict[str, Record]] = {}
    for (suite, _), score in scores.items():
        of_suite = {row["reply"]: row for row in judged(score["labels"]) if BY_HAND in row}
        if of_suite:
            read.setdefault((suite, (ALL, ALL, ALL)), {}).update(of_suite)
    columns = "judge other n agreement kappa only_judge only_other complied neither"
    frames = [
        _score_rows(scores, lambda score: _agreements(judged(score["labels"]), pairs), columns),
        _score_rows(read, lambda rows: _agreements(list(rows.values()), [p for p in pairs if BY_HAND in p]), columns),
    ]
    table = pandas.concat([frame for frame in frames if len(frame)] or frames[:1])
    return table.astype({COMPLIED: "Int64", NEITHER: "Int64"})


def _agreements(labels: Sequence[Record], pairs: Iterable[tuple[str, str]]) -> Iterator[Record]:
    """Yield how each pair of judges agrees on the completions that both decided on, where there is one."""
    for one, other in pairs:
        names = (f"jailbroken_{one}", f"jailbroken_{other}")
        decided = [row for row in labels if all(row.get(name) is not None for name in names)]
        if n := len(decided):
            both = Counter(tuple(row[name] for name in names) for row in decided)
            same = (both[True, True] + both[False, False]) / n
            shares = [(both[True, True] + more) / n for more in (both[True, False], both[False, True])]
            chance = math.prod(shares) + math.prod(1 - share for share in shares)
            yield {
                "judge": one,
                "other": other,
                "n": n,
                "agreement": same,
                "kappa": (same - chance) / (1 - chance) if chance < 1 else None,
                "only_judge": both[True, False],
                "only_other": both[False, True],
                **{
                    said: sum(row[BY_HAND] == said for row in decided) if other == BY_HAND else None
                    for said in (COMPLIED, NEITHER)
                },
            }


def directions_table(
    directions: Mapping[Pair, Record],
    comparisons: Mapping[Pair, Record],
    verifications: Mapping[Pair, Record],
    cosmic: Mapping[Pair, Record],
) -> pandas.DataFrame:
    """Return one row per (model, compression): the site, how it was chosen, its comparison, claim C1, COSMIC's site.

    Cells of other records than the direction's own that are not there stay empty.
    """
    rows = []
    for pair, record in directions.items():
        row: dict[str, Any] = dict(zip(PAIR, pair, strict=True))
        row |= {name: record[name] for name in "layer position rule survivors kl_limit induce kl bypass norm".split()}
        row |= _stability(record["stability"])
        other = cosmic.get(pair)
        row |= {f"cosmic_{name}": other and other[name] for name in COSMIC}
        row["cosmic_agrees"] = other and [other[name] for name in SITE] == [record[name] for name in SITE]
        for name, column in (("used", "n"), ("filtered", "filtered")):
            row |= {f"{column}_{prompts}": counts[name] for prompts, counts in record["prompts"].items()}
        if comparison := comparisons.get(pair):
            row |= {name: comparison[name] for name in COMPARED}
            row |= {f"original_{name}": value for name, value in comparison["site"].items()}
            for name in COMPARED_INTERVALS:
                row |= {f"{name}_{key}": value for key, value in comparison[name].items()}
            corrected = comparison[CORRECTED]
            row |= {CORRECTED: corrected["value"]}
            row |= {f"{CORRECTED}_{bound}": corrected[bound] for bound in ("low", "high")}
            row |= _separations(comparison["projections"])
        if verification := verifications.get(pair):
            for name, rate in verification["rates"].items():
                row |= {f"refusal_{name}": rate["refusal"], f"degenerate_{name}": rate["degenerate"]}
            row |= {name: verification[name] for name in ("ablation_p_value", "addition_p_value")}
        rows.append(row)
    if not rows:
        return pandas.DataFrame(columns=[*PAIR, *SITE])
    # With empty cells, whole numbers would become fractions.
    whole = dict.fromkeys(("cosmic_layer", "cosmic_position", "resampled_layer_low", "resampled_layer_high"), "Int64")
    frame = pandas.DataFrame(rows).astype({**whole, "cosmic_agrees": "boolean"})
    return frame.reindex(columns=[*frame, *(name for name in COMPARISON_COLUMNS if name not in frame)])


def _stability(stability: Record) -> dict[str, Any]:
    """Return what resampled validation prompts choose: the same site how often, which sites, which layers."""
    sites = "; ".join(
        f"({site['layer']}, {site['position']}) {100 * site['share']:.0f}%" for site in stability["sites"][:3]
    )
    names = ("same_site", "layer_low", "layer_high")
    return {f"resampled_{name}": stability[name] for name in names} | {"resampled_sites": sites}


def _separations(projections: Sequence[Record]) -> dict[str, float]:
    """Return, along both directions, how far the compressed model's classes are apart, in standard deviations.

    Also the original's along its own direction, as what to compare with.
    """
    by_class = {(row["states_of"], row["direction"], row["kind"]): row for row in projections}
    separations = {}
    for name, whose, direction in (
        ("separation_on_original", "compressed", "original"),
        ("separation_on_own", "compressed", "own"),
        ("original_separation", "original", "original"),
    ):
        separations[name] = _separation(*(by_class[whose, direction, kind] for kind in CLASSES))
    return separations


def _separation(harmful: Record, harmless: Record) -> float:
    """Return how far apart two projections' means are, in standard deviations; NaN where nothing varies."""
    spread = math.sqrt((harmful["standard_deviation"] ** 2 + harmless["standard_deviation"] ** 2) / 2)
    return float((harmful["mean"] - harmless["mean"]) / spread) if spread else math.nan


def restored_table(
    restorations: Mapping[Cell, Record],
    examinations: Mapping[Cell, Record],
    verifications: Mapping[Pair, Record],
) -> pandas.DataFrame:
    """Return one row per checkpoint of a comparison with a patched one, all at the site of the original's direction.

    The original's row comes first, then of each compression the unpatched checkpoint's (`plain`) and the patched ones'.

    Args:
        restorations: of the patched checkpoints (`aird.directions.restoration.compare_restored`).
        examinations: their verifications, with the original's direction.
        verifications: of the unpatched checkpoints, each with its own direction. So of the compressed ones only
            what is refused without an intervention is taken.
    """
    rows: dict[Cell, dict[str, Any]] = {}
    for (model, compression, patch), record in restorations.items():
        for cell, name in (
            ((model, ORIGINAL, PLAIN), "original"),
            ((model, compression, PLAIN), "compressed"),
            ((model, compression, patch), "patched"),
        ):
            if cell not in rows:
                rows[cell] = dict(zip(CELL, cell, strict=True)) | record["site"]
                rows[cell] |= _at_original_site(record["checkpoints"][name])
        gain = record["corrected_cosine_gain"]
        rows[model, compression, patch] |= {f"cosine_gain{end}": gain[key] for end, key in ENDS.items()}
    for cell, row in rows.items():
        own = verifications.get(cell[:2], {}) if cell[2] == PLAIN else examinations.get(cell, {})
        along_r = cell[2] != PLAIN or cell[1] == ORIGINAL
        for name, rate in own.get("rates", {}).items():
            if along_r or name in CLASSES:
                row |= {f"refusal_{name}{end}": rate[f"refusal{end}"] for end in ENDS}
        row |= {name: own.get(name) if along_r else None for name in ("ablation_p_value", "addition_p_value")}
    return pandas.DataFrame(rows.values(), columns=RESTORED_COLUMNS)


def _at_original_site(checkpoint: Record) -> dict[str, Any]:
    """Return the columns about one checkpoint's activations."""
    bootstrap, projected = checkpoint["norm_ratio_bootstrap"], checkpoint["projections"]
    return {
        **{f"corrected_cosine{end}": checkpoint["corrected_cosine"][key] for end, key in ENDS.items()},
        "norm_ratio": checkpoint["norm_ratio"],
        **{f"norm_ratio_{bound}": bootstrap[bound] for bound in ("low", "high")},
        **{f"{kind}_mean": projected[kind]["mean"] for kind in CLASSES},
        "separation": _separation(*(projected[kind] for kind in CLASSES)),
    }


def projections_table(comparisons: Mapping[Pair, Record]) -> pandas.DataFrame:
    """Return the activations' component along both directions: whose, of which prompts, at which site."""
    columns = "states_of kind direction layer position n mean standard_deviation"
    return _rows(comparisons, lambda comparison: comparison["projections"], PAIR, columns)


def sites_table(comparisons: Mapping[Pair, Record]) -> pandas.DataFrame:
    """Return cosine and norm ratio with the original at every site of every compressed model."""
    return _rows(comparisons, lambda comparison: comparison["sites"], PAIR, "layer position cosine norm_ratio")


def candidates_table(scores: Mapping[Pair, pandas.DataFrame]) -> pandas.DataFrame:
    """Return what adding and ablating does at every candidate site of every checkpoint.

    Args:
        scores: (model, compression) to layer, position, induce, kl, bypass.
    """
    columns = [*PAIR, *"layer position induce kl bypass".split()]
    frames = [frame.assign(model=model, compression=compression) for (model, compression), frame in scores.items()]
    return pandas.concat(frames)[columns] if frames else pandas.DataFrame(columns=columns)


def patches_table(statistics: Mapping[Cell, Record]) -> pandas.DataFrame:
    """Return one row per edited matrix of every patch; how near a column is to the direction, where it was learnt."""

    def edits(record: Record) -> Iterator[Record]:
        return ({**edit, "adapter_bytes": record["adapter_bytes"]} for edit in record["edits"])

    columns = "module relative_change row_norm_before row_norm_after cosine_with_direction adapter_bytes"
    return _rows(statistics, edits, CELL, columns)


def compressions_table(manifests: Mapping[Pair, Record], scores: Scores) -> pandas.DataFrame:
    """Return measured sparsity, bits per weight, error and formats of every checkpoint; empty for the original.

    `served_as` is of ready-made checkpoints, by who served them; empty where that was nobody, or a running server.
    """
    # A patch may need a dense copy where the checkpoint alone does not.
    computed_with = {cell[:2]: score.get("weights") for (_, cell), score in scores.items() if cell[2] == PLAIN}
    rows = {}
    for pair, manifest in manifests.items():
        measured = manifest.get("total", {})
        forms: dict[str | None, Any] = {
            AS_STORED: manifest.get("served_as"),
            DENSE_COPY: DEQUANTISED,
            GGUF_FILE: AS_GIVEN,
        }
        served_as = forms.get(computed_with.get(pair)) if "served_as" in manifest else None
        rows[pair] = [{**measured, "formats": ", ".join(measured.get("formats", [])), "served_as": served_as}]
    columns = "sparsity bits_per_weight sparse_bits_per_weight relative_error weights stored_bytes formats served_as"
    return _rows(rows, list, PAIR, columns)


def merged_table(records: Mapping[Cell, tuple[Record, Record, Record]]) -> pandas.DataFrame:
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
                **dict(zip(CELL, cell, strict=True)),
                "adapter_bytes": statistics["adapter_bytes"],
                "edited_matrices": len(filled),
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

"""The claims' table, from records whose answers are known."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas
import pytest

from aird.directions.source_site import compare_sites
from aird.evaluation.utility import answered_rightly, mean_utility, perplexity_growth
from aird.reporting.claims.all_claims import all_statements
from aird.reporting.claims.evidence import Evidence
from aird.reporting.claims.statement import read_statements
from aird.reporting.tables.claims import TABLE
from aird.reporting.verdicts import ALL, DOES_NOT_HOLD, HOLDS, PART_LOST, SHIFTED, STAYS_LOST, UNDECIDED


def rate(value: float, n: int = 100) -> list[bool]:
    """Return n labels of which the first part is true."""
    return [index < round(value * n) for index in range(n)]


def verification(harmful: float, ablated: float, harmless: float, added: float) -> dict[str, Any]:
    rates = {"harmful": harmful, "harmful_ablated": ablated, "harmless": harmless, "harmless_added": added}
    return {"labels": {name: {"refused": rate(value)} for name, value in rates.items()}}


def direction(layer: int, rule: str = "published", **shares: float) -> dict[str, Any]:
    sites = [{"layer": int(name[1:]), "position": -1, "share": share} for name, share in shares.items()]
    own = next((site["share"] for site in sites if site["layer"] == layer), None)
    layers = [site["layer"] for site in sites]
    stability = {"resamples": 100, "undefined": 0, "same_site": own, "sites": sites}
    stability |= {"layer_low": min(layers, default=None), "layer_high": max(layers, default=None)}
    return {"layer": layer, "position": -1, "rule": rule, "stability": stability}


def comparison(cosine: float, compressed: dict[str, Any]) -> dict[str, Any]:
    corrected = {"value": cosine, "low": cosine - 0.02, "high": cosine + 0.02, "n_harmful": 128}
    return {
        "cosine_same_site_shared": cosine - 0.03,
        "cosine_same_site_corrected": corrected,
        "source_site": compare_sites(ORIGINAL_DIRECTION, compressed),
    }


def restoration(before: float, after: float, spread: float = 0.02) -> dict[str, Any]:
    cosines = {"original": 1.0, "compressed": before, "patched": after}
    return {
        "checkpoints": {
            name: {"corrected_cosine": {"value": value, "low": value - spread, "high": value + spread, "n_harmful": 128}}
            for name, value in cosines.items()
        },
        "corrected_cosine_gain": {
            "value": after - before, "low": after - before - spread, "high": after - before + spread
        },
    }  # fmt: skip


ORIGINAL_DIRECTION = direction(10, l10=0.9, l11=0.1)
COMPRESSED = {
    "pruned": direction(14, l14=1.0),
    "quantised": direction(10, l10=1.0),
    "light": direction(12, "relaxed_induce", l12=1.0),
}


def score(
    harmful: float, harmless: float = 0.05, right: float = 0.8, likelihood: float = 10.0, apart: float = 0.9
) -> dict[str, Any]:
    """Return scores of 200 prompts of each kind; first tokens of harmful ones score `apart` above harmless ones."""
    labels = [
        {"id": f"{n:03}", "kind": kind, "refused": value, "refusal_score": n / 200 + further}
        for kind, share, further in (("harmful", harmful, apart), ("harmless", harmless, 0.0))
        for n, value in enumerate(rate(share, 200))
    ]
    answers = [{"id": str(n), "negative_log_likelihood": likelihood + n % 7, "tokens": 20} for n in range(30)]
    questions = {"task": {"acc": [float(value) for value in rate(right, 200)]}}
    return {"labels": labels, "answers": answers, "questions": questions}


def collected() -> Evidence:
    """Return what there is of a model with a pruned, a quantised and a harmless compression, all patched."""
    names = ("original", "pruned", "quantised", "light")
    return Evidence(
        directions={
            ("m", "original"): ORIGINAL_DIRECTION,
            **{("m", name): made for name, made in COMPRESSED.items()},
        },
        verifications={
            ("m", "original"): verification(0.9, 0.05, 0.05, 0.9),
            ("m", "pruned"): verification(0.5, 0.05, 0.05, 0.06),
            ("m", "quantised"): verification(0.9, 0.05, 0.05, 0.8),
            ("m", "light"): verification(0.1, 0.05, 0.05, 0.8),
        },
        comparisons={
            ("m", name): comparison(cosine, COMPRESSED[name])
            for name, cosine in (("pruned", 0.5), ("quantised", 0.98), ("light", 0.96))
        },
        scores={
            ("s", ("m", "original", "plain")): score(0.95),
            **{
                ("s", ("m", name, "plain")): score(refusal)
                for name, refusal in zip(names[1:], (0.3, 0.95, 0.94), strict=True)
            },
            ("s", ("m", "pruned", "aird")): score(0.95),
            ("s", ("m", "quantised", "aird")): score(0.95),
            ("s", ("m", "light", "aird")): score(0.95, harmless=0.3, right=0.6, likelihood=12.0),
            ("s", ("m", "pruned", "random")): score(0.31),
            ("s", ("m", "pruned", "learnt")): score(0.93),
            ("s", ("m", "pruned", "learnt-random")): score(0.92),
            ("s", ("m", "pruned", "weak")): score(0.5),
            ("s", ("m", "pruned", "strong-random")): score(0.99),
            ("s", ("m", "pruned", "fitted")): score(0.93),
            ("s", ("m", "pruned", "lora")): score(0.95),
        },
        pruned=frozenset(("pruned",)),
        random=frozenset(("random", "learnt-random", "strong-random")),
        restorations={
            ("m", "pruned", "aird"): restoration(0.5, 0.98),
            ("m", "quantised", "aird"): restoration(0.98, 0.985),
            ("m", "pruned", "weak"): restoration(0.5, 0.7),
            ("m", "pruned", "learnt"): restoration(0.5, 0.49),
            ("m", "pruned", "random"): restoration(0.5, 0.56, 0.1),
        },
        examinations={
            ("m", "pruned", "aird"): verification(0.9, 0.1, 0.05, 0.9),
            ("m", "quantised", "aird"): verification(0.9, 0.1, 0.05, 0.9),
            ("m", "pruned", "weak"): verification(0.5, 0.1, 0.05, 0.9),
            ("m", "pruned", "learnt"): verification(0.9, 0.89, 0.05, 0.9),
            ("m", "pruned", "random"): verification(0.3, 0.25, 0.05, 0.9),
        },
        controls={"aird": ["random"], "learnt": ["learnt-random"], "weak": ["strong-random"], "fitted": []},
        seed=0,
    )


def claims_table(evidence: Evidence) -> pandas.DataFrame:
    return pandas.DataFrame([statement.row() for statement in all_statements(evidence)])


def table_with(**changes: Any) -> pandas.DataFrame:
    """Return the table of what `collected` has with these fields changed."""
    return claims_table(dataclasses.replace(collected(), **changes))


@pytest.fixture(scope="module")
def table() -> pandas.DataFrame:
    return table_with()


def served_alike(plain: dict[str, Any], repaired: dict[str, Any]) -> pandas.DataFrame:
    """Return the rows of a compression that changes no weight, and of its repair."""
    scores = {("s", ("m", "cache", "plain")): plain, ("s", ("m", "cache", "aird")): repaired}
    table = table_with(scores={**collected().scores, **scores})
    return table[table.compression == "cache"]


def test_what_changes_no_weight_has_no_direction_that_moves_but_can_lose_refusals_and_answers() -> None:
    table = served_alike(score(0.5), score(0.9))
    assert set(table.claim) == {"C4"}
    assert "nothing to repair" not in row(table, "refusal is repaired at no cost", "cache", "aird").reason
    assert row(table, "raises refusal of harmful prompts", "cache", "aird").estimate == pytest.approx(0.4)
    table = served_alike(score(0.95, harmless=0.4), score(0.95, harmless=0.05))
    lost = row(table, "harmless prompts are refused more than by the original", "cache")
    back = row(table, "lowers refusal of harmless prompts", "cache", "aird")
    assert [(each.verdict, each.estimate) for each in (lost, back)] == [(HOLDS, pytest.approx(0.35))] * 2
    # Its refusals of harmful prompts, which were not lost, need not be raised.
    assert row(table, "refusal is repaired at no cost", "cache", "aird").verdict == HOLDS


def row(table: pandas.DataFrame, statement: str, compression: str, patch: str = "") -> Any:
    rows = table[
        table.statement.str.contains(statement, regex=False)
        & (table.compression == compression)
        & (table.patch == patch)
    ]
    assert len(rows) == 1
    return rows.iloc[0]


def test_columns_and_rows(table: pandas.DataFrame) -> None:
    assert list(table.columns) == [column.name for column in TABLE.columns]
    assert set(table.verdict) == {HOLDS, DOES_NOT_HOLD, UNDECIDED}
    assert table.loc[table.verdict != HOLDS, "reason"].ne("").all()
    assert not table.duplicated(["model", "suite", "compression", "patch", "claim", "statement"]).any()
    assert not table.duplicated(["model", "suite", "compression", "patch", "part", "control"]).any()


def test_the_statements_are_read_again_from_their_table(table: pandas.DataFrame, tmp_path: Path) -> None:
    table.astype({"needed": "Int64"}).to_csv(tmp_path / "claims.csv", index=False)
    read = pandas.DataFrame([statement.row() for statement in read_statements(tmp_path / "claims.csv")])
    pandas.testing.assert_frame_equal(read, table)


@pytest.mark.parametrize(
    ("statement", "compression", "patch", "verdict", "estimate"),
    [
        ("ablation lowers", "pruned", "", HOLDS, 0.45),
        ("addition raises", "pruned", "", DOES_NOT_HOLD, 0.01),
        ("one direction mediates", "original", "", HOLDS, None),
        ("one direction mediates", "pruned", "", DOES_NOT_HOLD, None),
        ("one direction mediates", "quantised", "", HOLDS, None),
        ("moves the direction", "pruned", "", HOLDS, 0.5),
        ("keeps the direction", "quantised", "", HOLDS, 0.98),
        ("keeps the source site", "quantised", "", HOLDS, 0),
        ("quantisation keeps direction", "pruned", "", HOLDS, None),
        ("refusal is lost where the direction moves", "pruned", "", HOLDS, 0.65),
        ("refusal is lost where the direction moves", "quantised", "", HOLDS, 0.0),  # kept, and nothing lost
        ("refusal is lost where the direction moves", "light", "", UNDECIDED, 0.01),  # whether it moved is open
        ("raises refusal of harmful prompts", "pruned", "aird", HOLDS, 0.65),
        ("raises refusal more than random", "pruned", "aird", HOLDS, 0.64),
        ("over-refusal grows", "pruned", "aird", HOLDS, 0.0),
        ("3 points more than by the original", "pruned", "aird", HOLDS, 0.0),
        ("d' of refusals", "pruned", "aird", HOLDS, 0.0),
        ("d' of refusals", "pruned", "weak", DOES_NOT_HOLD, 1.624),
        ("AUC of first tokens", "pruned", "aird", HOLDS, 0.0),
        ("fewer prompts flip", "pruned", "aird", HOLDS, 0.325),  # 130 of 400 prompts decide as the original's again
        ("fewer prompts flip", "pruned", "random", DOES_NOT_HOLD, 0.005),
        ("fewer prompts flip", "quantised", "aird", UNDECIDED, 0.0),  # no prompt had flipped
        ("utility falls", "pruned", "aird", HOLDS, 0.0),
        ("perplexity grows", "pruned", "aird", HOLDS, 0.0),
        ("repaired at no cost", "pruned", "aird", HOLDS, None),
        ("raises refusal of harmful prompts", "pruned", "random", DOES_NOT_HOLD, 0.01),
        ("repaired at no cost", "pruned", "random", DOES_NOT_HOLD, None),
        ("repaired at no cost", "pruned", "learnt", DOES_NOT_HOLD, None),
        ("repaired at no cost", ALL, "learnt", DOES_NOT_HOLD, None),
        ("repaired at no cost", "pruned", "lora", HOLDS, None),  # without a direction, it says nothing about one
        ("over-refusal grows", "light", "aird", DOES_NOT_HOLD, 0.25),
        ("3 points more than by the original", "light", "aird", DOES_NOT_HOLD, 0.25),
        ("utility falls", "light", "aird", DOES_NOT_HOLD, 0.2),
        ("perplexity grows", "light", "aird", DOES_NOT_HOLD, math.exp(2 / 20) - 1),
        ("repaired at no cost", "light", "aird", UNDECIDED, None),  # it lost nothing
        ("nearer to the original's", "pruned", "aird", HOLDS, 0.48),
        ("back to the original's", "pruned", "aird", HOLDS, 0.98),
        ("the refusal direction is restored", "pruned", "aird", HOLDS, None),
        # A direction that comes nearer is not restored.
        ("nearer to the original's", "pruned", "weak", HOLDS, 0.2),
        ("back to the original's", "pruned", "weak", DOES_NOT_HOLD, 0.7),
        ("nearer to the original's", "pruned", "learnt", DOES_NOT_HOLD, -0.01),
        ("back to the original's", "pruned", "learnt", DOES_NOT_HOLD, 0.49),
        ("refuses less with the original's direction", "pruned", "random", DOES_NOT_HOLD, 0.05),
    ],
)
def test_a_verdict(
    table: pandas.DataFrame, statement: str, compression: str, patch: str, verdict: str, estimate: float | None
) -> None:
    found = row(table, statement, compression, patch)
    assert found.verdict == verdict
    assert math.isnan(found.estimate) if estimate is None else found.estimate == pytest.approx(estimate, abs=1e-3)
    assert found.suite == ("s" if found.claim in ("C3", "C4") else "")


@pytest.mark.parametrize(
    ("statement", "compression", "patch", "reason"),
    [
        ("repaired at no cost", "light", "aird", "nothing to repair"),
        ("the refusal direction is restored", "quantised", "aird", "did not move"),  # whatever stands there
        ("the refusal direction is restored", "pruned", "weak", "the corrected cosine is below 0.95"),
        ("nearer to the original's", "pruned", "learnt", "any rise of the corrected cosine is below 0.05"),
    ],
)
def test_a_reason(table: pandas.DataFrame, statement: str, compression: str, patch: str, reason: str) -> None:
    assert reason in row(table, statement, compression, patch).reason


def test_over_all_compressions_only_what_lost_something_counts(table: pandas.DataFrame) -> None:
    for statement in ("repaired at no cost", "the refusal direction is restored"):
        overall = row(table, statement, ALL, "aird")
        assert (overall.verdict, overall.n) == (HOLDS, 1)
    names = ("raises refusal of harmful", "nearer to the original's", "back to the original's")
    assert [row(table, name, "pruned", "aird").n for name in names] == [200, 128, 128]
    # A control makes no claim over all compressions.
    assert table[(table.patch == "random") & (table.compression == ALL)].empty
    further = row(table, "more refusal is lost", ALL)
    assert (further.estimate, further.p_value) == (pytest.approx(1), pytest.approx(1 / 6))
    assert (further.verdict, further.reason) == (UNDECIDED, "3 compressions are too few")


def test_ablation_is_judged_only_of_patches_that_it_does_not_undo(table: pandas.DataFrame) -> None:
    """A patch along r writes nothing that is left when r is ablated."""
    judged = table[table.statement.str.contains("refuses less with the original's direction", regex=False)]
    assert set(judged.patch) == {"random"}


def test_one_direction_mediates_refusal(table: pandas.DataFrame) -> None:
    ablation = row(table, "ablation lowers", "pruned")
    assert (ablation.estimate, ablation.n, ablation.verdict) == (pytest.approx(0.45), 100, HOLDS)
    assert ablation.low < 0.45 < ablation.high
    # Three compressions, so Holm multiplies by at least one and at most three.
    assert ablation.p_value <= ablation.p_adjusted <= 3 * ablation.p_value
    # The original is none of them: its own p-values are not adjusted, and it counts for no other.
    for statement in ("ablation lowers", "addition raises"):
        original, quantised = (row(table, statement, name) for name in ("original", "quantised"))
        assert original.p_adjusted == original.p_value and quantised.p_adjusted <= 3 * quantised.p_value
    # Ten of a hundred are refused: ablation cannot lower that by an amount that matters.
    light = row(table, "ablation lowers", "light")
    assert light.verdict == UNDECIDED and "10 points only" in light.reason
    overall = row(table, "one direction mediates", ALL)
    assert (overall.verdict, overall.reason, overall.n) == (DOES_NOT_HOLD, "pruned", 3)


def test_without_a_compressed_direction_the_originals_is_judged() -> None:
    overall = row(claims_table(dataclasses.replace(only(), scores={})), "one direction mediates", ALL)
    assert (overall.verdict, overall.n) == (HOLDS, 1)


def test_quantisation_keeps_and_pruning_moves(table: pandas.DataFrame) -> None:
    light = row(table, "keeps the direction", "light")
    # 0.96 is above the margin, its interval is not.
    assert (light.verdict, light.estimate, light.low) == (UNDECIDED, 0.96, pytest.approx(0.94))
    assert "0.95" in light.test and "0.95" in light.reason
    moved = row(table, "moves the source site", "pruned")
    assert (moved.verdict, moved.estimate, moved.p_value) == (HOLDS, 4, pytest.approx(1 / 101))
    # Two sites are tested: no resample can decide that of `light`, which so counts for none.
    assert moved.p_adjusted == pytest.approx(2 / 101)
    light = row(table, "keeps the source site", "light")
    assert all(map(math.isnan, (light.low, light.high, light.p_value, light.p_adjusted))) and light.n == 0
    assert "no candidate induces" in row(table, "keeps the source site", "light").reason
    overall = row(table, "quantisation keeps direction", ALL)
    assert (overall.verdict, overall.reason) == (UNDECIDED, "light")


def test_a_p_value_is_of_what_is_claimed(table: pandas.DataFrame) -> None:
    for statement, compression, patch in (
        ("moves the direction", "pruned", ""),
        ("keeps the direction", "quantised", ""),
        ("back to the original's", "pruned", "aird"),
    ):
        claimed = row(table, statement, compression, patch)
        assert claimed.verdict == HOLDS and claimed.p_value <= claimed.p_adjusted < 0.05
    assert row(table, "back to the original's", "pruned", "weak").p_adjusted == 1
    # That a site was kept has no test, and the whole is as significant as its other part.
    kept = row(table, "keeps the source site", "quantised")
    assert (kept.verdict, kept.n) == (HOLDS, 100) and math.isnan(kept.p_value) and math.isnan(kept.p_adjusted)
    whole = row(table, "quantisation keeps direction", "quantised")
    assert whole.p_adjusted == row(table, "keeps the direction", "quantised").p_adjusted


def test_a_kept_direction_is_as_significant_after_holm_as_one_that_moved() -> None:
    """An interval that ends just above the margin is enough of one compression, not of three."""
    evidence = collected()
    edge = {"value": 0.97, "low": 0.951, "high": 0.989, "n_harmful": 128}
    few = {pair: {**record, "cosine_same_site_corrected": edge} for pair, record in evidence.comparisons.items()}
    quantised = row(table_with(comparisons=few), "keeps the direction", "quantised")
    assert quantised.p_value < 0.05 < quantised.p_adjusted and quantised.verdict == UNDECIDED
    assert quantised.needed > 128


def test_a_site_that_moved_was_not_kept() -> None:
    evidence = collected()
    moved = {("m", "quantised"): direction(14, l14=1.0)}
    comparisons = {("m", "quantised"): comparison(0.98, moved["m", "quantised"])}
    table = table_with(directions={**evidence.directions, **moved}, comparisons={**evidence.comparisons, **comparisons})
    site = row(table, "keeps the source site", "quantised")
    assert (site.verdict, site.reason) == (DOES_NOT_HOLD, "it moved") and math.isnan(site.p_value)


@pytest.mark.parametrize("by_cosmic", [("original",), ("pruned", "quantised"), ("original", "pruned", "quantised")])
def test_resamples_by_another_rule_say_nothing_of_a_site_that_cosmic_chose(by_cosmic: tuple[str, ...]) -> None:
    evidence = collected()
    directions = {
        pair: {**record, "rule": "cosmic_relaxed_kl" if pair[1] in by_cosmic else record["rule"]}
        for pair, record in evidence.directions.items()
    }
    table = table_with(directions=directions)
    for name, verb, layers in (("pruned", "moves", 4), ("quantised", "keeps", 0)):
        site = row(table, f"{verb} the source site", name)
        assert (site.verdict, site.estimate, site.n) == (UNDECIDED, layers, 0)
        assert site.reason == "COSMIC chose a site, and the resamples choose by Arditi's rule"
        assert pandas.isna(site.needed)
        assert all(map(math.isnan, (site.low, site.high, site.p_value)))


def test_what_a_ready_made_checkpoint_should_do_is_not_known_but_what_it_does_is() -> None:
    table = table_with(pruned=frozenset(), ready_made=frozenset(("pruned", "quantised")))
    for name, verdict in (("pruned", HOLDS), ("quantised", DOES_NOT_HOLD)):
        assert row(table, "moves the direction", name).verdict == verdict
        assert row(table, "moves the source site", name).verdict == verdict
        whole = row(table, "quantisation keeps direction", name)
        assert (whole.verdict, whole.reason) == (UNDECIDED, "a ready-made checkpoint may be quantised or pruned")
        assert pandas.isna(whole.needed)
        # What refusal follows is the direction, whatever was claimed of it.
        assert row(table, "refusal is lost where the direction moves", name).verdict == HOLDS
    assert row(table, "quantisation keeps direction", ALL).verdict == UNDECIDED


def only(*compressions: str) -> Evidence:
    """Return what there is of these compressions alone."""
    kept, evidence = {"original", *compressions}, collected()
    pairs = {
        name: {pair: record for pair, record in getattr(evidence, name).items() if pair[1] in kept}
        for name in ("directions", "verifications", "comparisons", "restorations", "examinations")
    }
    scores = {(suite, cell): record for (suite, cell), record in evidence.scores.items() if cell[1] in kept}
    return dataclasses.replace(evidence, **pairs, scores=scores)


def test_no_claim_vanishes_where_one_compression_lost_nothing() -> None:
    table = claims_table(only("quantised"))
    overall = row(table, "more refusal is lost", ALL)
    assert (overall.verdict, overall.n) == (UNDECIDED, 1)
    assert overall.reason == "fewer than two compressions have a direction to compare" and pandas.isna(overall.needed)
    repaired = row(table, "repaired at no cost", ALL, "aird")
    assert repaired.verdict == UNDECIDED and repaired.reason.endswith("so there is nothing to repair")
    assert pandas.isna(repaired.needed)
    restored = row(table, "the refusal direction is restored", ALL, "aird")
    assert restored.verdict == UNDECIDED and restored.reason.endswith("so there is nothing to restore")
    assert set(table.claim[table.compression == ALL]) == {"C1", "C2", "C3", "C4", "C5"}


def test_how_far_a_direction_moved_is_what_the_corrected_cosine_says() -> None:
    """The one that is not corrected falls with the noise, also where no direction turned."""
    evidence = collected()
    noisy = {pair: dict(record) for pair, record in evidence.comparisons.items()}
    for (_, name), record in noisy.items():
        record["cosine_same_site_shared"] = {"pruned": 0.9, "quantised": 0.5, "light": 0.7}[name]
    overall = row(table_with(comparisons=noisy), "more refusal is lost", ALL)
    assert (overall.estimate, overall.n) == (pytest.approx(1), 3)
    corrected = noisy["m", "light"]["cosine_same_site_corrected"]
    noisy["m", "light"]["cosine_same_site_corrected"] = {**corrected, "value": None}
    overall = row(table_with(comparisons=noisy), "more refusal is lost", ALL)
    assert (overall.estimate, overall.n) == (pytest.approx(1), 2)


def test_a_repair_is_judged_against_its_matched_control_alone(table: pandas.DataFrame) -> None:
    compared = table[table.statement.str.startswith("raises refusal more than")]
    controls = compared.statement.str.removeprefix("raises refusal more than ")
    assert sorted(zip(compared.patch, compared.compression, controls, strict=True)) == [
        ("aird", "light", "a matched control"),
        ("aird", "pruned", "random"),
        ("aird", "quantised", "a matched control"),
        ("fitted", "pruned", "a matched control"),
        ("learnt", "pruned", "learnt-random"),
        ("weak", "pruned", "strong-random"),
    ]


def test_a_random_direction_trained_alike_that_restores_as_much_refutes_the_repair(table: pandas.DataFrame) -> None:
    # The untrained control, at 31%, would have let it hold.
    compared = row(table, "raises refusal more than", "pruned", "learnt")
    assert (compared.verdict, compared.estimate) == (DOES_NOT_HOLD, pytest.approx(0.01))
    assert compared.reason == "learnt-random, with the same settings, raises it about as much"
    assert row(table, "repaired at no cost", "pruned", "learnt").reason == compared.reason
    weak = row(table, "raises refusal more than", "pruned", "weak")
    assert weak.reason == "strong-random, with the same settings, raises it more"


def test_a_repair_without_a_matched_control_is_undecided_and_says_what_to_add(table: pandas.DataFrame) -> None:
    part = row(table, "raises refusal more than", "pruned", "fitted")
    assert part.verdict == UNDECIDED and pandas.isna(part.needed)
    assert part.reason == "no control with the same settings: add one with direction: random"
    assert math.isnan(part.p_value) and math.isnan(part.p_adjusted)
    for compression in ("pruned", ALL):
        whole = row(table, "repaired at no cost", compression, "fitted")
        assert whole.verdict == UNDECIDED and pandas.isna(whole.needed) and math.isnan(whole.p_adjusted)


RESTORES = ("d' of refusals", "AUC of first tokens", "fewer prompts flip")


@pytest.mark.parametrize(
    ("plain", "repaired", "verdicts", "reason"),
    [
        (score(0.3, apart=0.3), score(0.95), (HOLDS, HOLDS, HOLDS), ""),
        # Every harmful prompt is refused again, and as many more harmless ones.
        (score(0.3, apart=0.3), score(0.95, 0.6, apart=0.3), (DOES_NOT_HOLD, DOES_NOT_HOLD, UNDECIDED), f"the cost is above the margin; {SHIFTED}"),
        (score(0.3, apart=0.3), score(0.95, apart=0.3), (HOLDS, DOES_NOT_HOLD, HOLDS), STAYS_LOST.format("AUC")),
        (
            score(0.3, apart=0.3), score(0.8, apart=0.6), (DOES_NOT_HOLD, DOES_NOT_HOLD, HOLDS),
            "; ".join(map(PART_LOST.format, ("d'", "AUC"))),
        ),
        (
            score(0.3, apart=0.3), score(0.3, apart=0.3), (DOES_NOT_HOLD, DOES_NOT_HOLD, DOES_NOT_HOLD),
            "; ".join(("any change is below 10 points", *map(STAYS_LOST.format, ("d'", "AUC")))),
        ),
        (
            score(0.3, apart=0.9), score(0.9), (UNDECIDED, HOLDS, HOLDS),
            "some d' stays lost, and whether more than 0.3 is open",
        ),
        # The loss of d' is about 0.17, and its interval reaches across the margin.
        (score(0.3, apart=0.9), score(0.93), (UNDECIDED, HOLDS, HOLDS), "the interval reaches across the margin"),
    ],
    ids=["restored", "shifted", "first tokens stay lost", "a part", "nothing", "some", "too few prompts"],
)  # fmt: skip
def test_a_lower_threshold_restores_nothing(
    plain: dict[str, Any], repaired: dict[str, Any], verdicts: tuple[str, ...], reason: str
) -> None:
    cells = {("s", ("m", "pruned", "plain")): plain, ("s", ("m", "pruned", "lora")): repaired}
    table = table_with(scores={**collected().scores, **cells})
    assert tuple(row(table, name, "pruned", "lora").verdict for name in RESTORES) == verdicts
    whole = row(table, "repaired at no cost", "pruned", "lora")
    expected = DOES_NOT_HOLD if DOES_NOT_HOLD in verdicts else UNDECIDED if UNDECIDED in verdicts else HOLDS
    assert whole.verdict == expected == row(table, "repaired at no cost", ALL, "lora").verdict
    assert whole.reason == reason
    if expected == UNDECIDED:
        assert whole.needed == row(table, RESTORES[0], "pruned", "lora").needed > 400


def test_without_scores_of_first_tokens_a_repair_is_undecided() -> None:
    """As of a server that tells no log-probabilities: d' alone does not show that sensitivity came back."""
    scores = {
        key: {**record, "labels": [{**label} for label in record["labels"]]}
        for key, record in collected().scores.items()
    }
    for label in scores["s", ("m", "pruned", "aird")]["labels"]:
        del label["refusal_score"]
    table = table_with(scores=scores)
    part, whole = (row(table, name, "pruned", "aird") for name in ("AUC of first tokens", "repaired at no cost"))
    assert part.verdict == UNDECIDED and pandas.isna(part.needed)
    assert part.reason.startswith("the AUC of first tokens was not measured: an engine told no")
    assert (whole.verdict, whole.reason) == (UNDECIDED, part.reason) and pandas.isna(whole.needed)
    assert row(table, "d' of refusals", "pruned", "aird").verdict == HOLDS
    assert row(table, "repaired at no cost", ALL, "aird").verdict == UNDECIDED


@pytest.mark.parametrize(("name", "nothing", "what"), [("questions", {}, "utility"), ("answers", [], "perplexity")])
def test_a_cost_that_was_not_measured_leaves_a_repair_undecided(name: str, nothing: Any, what: str) -> None:
    evidence = collected()
    scores = {key: {**record, name: nothing} for key, record in evidence.scores.items()}
    table = table_with(scores=scores)
    part = row(table, f"{what} ", "pruned", "aird")
    assert (part.verdict, part.reason) == (UNDECIDED, f"{what} was not measured")
    for compression in ("pruned", ALL):
        whole = row(table, "repaired at no cost", compression, "aird")
        assert whole.verdict == UNDECIDED and pandas.isna(whole.needed)
    # What is refuted stays so.
    assert row(table, "repaired at no cost", "pruned", "learnt").verdict == DOES_NOT_HOLD


def test_questions_that_changed_between_two_evaluations_are_not_compared() -> None:
    evidence = collected()
    data = {"plain": {"task": {"version": 1, "sha256": "a"}}, "aird": {"task": {"version": 1, "sha256": "b"}}}
    scores = {
        key: record | {"task_data": data.get(key[1][2], data["plain"])} for key, record in evidence.scores.items()
    }
    table = table_with(scores=scores)
    part = row(table, "utility ", "pruned", "aird")
    assert (part.verdict, part.reason) == (
        UNDECIDED,
        "the two were asked other questions: the data of a task changed on the hub",
    )
    assert pandas.isna(part.needed)
    assert row(table, "utility ", "pruned", "learnt").test == "paired difference, margin"


@pytest.fixture(scope="module")
def both_losses() -> pandas.DataFrame:
    """Return the table of a compression that took answers, and of one that took refusals and answers."""
    names = ("refusing", "broken")
    kept = direction(10, l10=1.0)
    evidence = Evidence(
        directions={("m", name): ORIGINAL_DIRECTION if name == "original" else kept for name in ("original", *names)},
        verifications={("m", name): verification(0.9, 0.05, 0.05, 0.9) for name in ("original", *names)},
        comparisons={("m", name): comparison(0.98, kept) for name in names},
        scores={
            ("s", ("m", "original", "plain")): score(0.95),
            ("s", ("m", "refusing", "plain")): score(0.95, harmless=0.3),
            ("s", ("m", "refusing", "aird")): score(0.95),
            ("s", ("m", "refusing", "idle")): score(0.95, harmless=0.29),
            ("s", ("m", "broken", "plain")): score(0.4, harmless=0.3),
            ("s", ("m", "broken", "aird")): score(0.94),
            ("s", ("m", "broken", "idle")): score(0.94, harmless=0.29),
            ("s", ("m", "broken", "random")): score(0.41, harmless=0.3),
        },
        pruned=frozenset(),
        random=frozenset(("random",)),
        controls={"aird": ["random"], "idle": ["random"]},
        seed=0,
    )
    return claims_table(evidence)


def test_answers_that_became_refusals_are_a_loss_with_its_interval(
    table: pandas.DataFrame, both_losses: pandas.DataFrame
) -> None:
    statement = "harmless prompts are refused more than by the original"
    for compression in ("refusing", "broken"):
        lost = row(both_losses, statement, compression)
        assert (lost.claim, lost.verdict, lost.estimate, lost.n) == ("C4", HOLDS, pytest.approx(0.25), 200)
        assert 0.15 < lost.low < 0.25 < lost.high < 0.35
    assert row(table, statement, "pruned").verdict == DOES_NOT_HOLD


def test_a_repair_has_to_bring_back_answers_where_they_were_lost(both_losses: pandas.DataFrame) -> None:
    whole = "repaired at no cost"
    back = row(both_losses, "lowers refusal of harmless prompts", "refusing", "aird")
    assert (back.verdict, back.estimate) == (HOLDS, pytest.approx(0.25))
    # No refusal of harmful prompts was lost there, and none has to come back.
    assert row(both_losses, "raises refusal of harmful", "refusing", "aird").verdict == UNDECIDED
    assert row(both_losses, whole, "refusing", "aird").verdict == HOLDS
    assert row(both_losses, whole, "broken", "aird").verdict == HOLDS
    assert row(both_losses, whole, ALL, "aird").n == 2
    # To bring back one of two losses is not enough.
    for compression in ("refusing", "broken", ALL):
        assert row(both_losses, whole, compression, "idle").verdict == DOES_NOT_HOLD
    part = row(both_losses, whole, "broken", "idle")
    assert part.reason == (
        "any change is below 10 points; the cost is above the margin; a part of the lost d' does not come back"
    )


def test_answers_are_asked_back_only_where_they_were_lost(table: pandas.DataFrame) -> None:
    assert not table.statement.str.contains("lowers refusal of harmless").any()


def test_answers_of_all_tasks() -> None:
    questions = {"a": {"acc_norm": [1.0, 0.0], "acc": [0.0, 0.0]}, "b": {"exact_match": [1.0]}, "c": {"bleu": [0.9]}}
    assert answered_rightly({"questions": questions}) == [False, False, True]
    assert answered_rightly({"questions": {}}) == []


def test_utility_is_the_mean_over_tasks_of_the_questions_that_claims_count() -> None:
    questions = {"a": {"acc_norm": [1.0, 0.0], "acc": [0.0, 1.0, 0.0, 1.0]}, "b": {"exact_match": [1.0] * 4}}
    assert mean_utility(questions) == (pytest.approx(0.75), pytest.approx((1 / 3 / 4) ** 0.5 / 2))
    assert mean_utility({**questions, "c": {"bleu": [0.9]}, "d": {}}) == mean_utility(questions)
    value, error = mean_utility({"a": {"acc": [1.0]}})
    assert value == 1.0 and math.isnan(error)
    assert all(map(math.isnan, mean_utility({"c": {"bleu": [0.9]}})))


def test_perplexity_is_compared_answer_by_answer() -> None:
    before = [{"id": str(n), "negative_log_likelihood": 5.0 * n, "tokens": 10} for n in range(1, 9)]
    after = [{**answer, "negative_log_likelihood": answer["negative_log_likelihood"] + 0.1} for answer in before[::-1]]
    # However much the answers differ among themselves, each lost the same.
    growth, low, high = perplexity_growth(before, after, 0)
    assert (growth, low, high) == (pytest.approx(0.01005, abs=1e-5),) * 3


def test_what_is_undecided_says_which_sample_it_needs_and_nothing_else_does(table: pandas.DataFrame) -> None:
    undecided = table.verdict == UNDECIDED
    assert table.loc[~undecided, "needed"].isna().all()
    assert row(table, "more refusal is lost", ALL).needed == 4  # compressions
    # The whole needs what its open parts need, and over all compressions as well.
    light = row(table, "ablation lowers", "light").needed
    # 5 points of 10: three compressions ask for p < 0.0167, which 7 prompts reach, all changed the same way.
    assert light == 140
    assert row(table, "one direction mediates", "light").needed == light
    moved = row(table, "keeps the direction", "light").needed
    # 0.96, whose interval ends 0.02 below, against a margin of 0.95, and a p-value that counts three times.
    assert moved == 770
    assert row(table, "refusal is lost where the direction moves", "light").needed == moved
    # No sample decides where the source site is, nor of what has nothing to repair.
    for statement, patch in (("keeps the source site", ""), ("quantisation keeps direction", "")):
        assert pandas.isna(row(table, statement, "light", patch).needed)
    assert pandas.isna(row(table, "repaired at no cost", "quantised", "aird").needed)


def test_a_control_gets_rows_and_no_verdict_over_all(table: pandas.DataFrame) -> None:
    nearer = row(table, "nearer to the original's", "pruned", "random")
    assert nearer.verdict == UNDECIDED and nearer.needed > 128
    fifth = table[table.claim == "C5"]
    assert set(fifth[fifth.compression == ALL].patch) == {"aird", "weak", "learnt"}

"""The tables, from hand-made records of the nodes."""

from __future__ import annotations

import math
from pathlib import Path

import node_records
import pandas
import pytest
from conftest import ROOT
from node_records import ORIGINAL, PATCHED, PRUNED, RATES, RESAMPLED, VERIFIED, made, row, score, verification

from aird.directions.stability import NOT_RESAMPLED
from aird.evaluation.kind_of_loss import FIRST_LOST, LESSENED, LOST
from aird.plugin import PluginError, use_files
from aird.reporting.markdown import describe, summary_markdown
from aird.reporting.reference import PAGE, generated_page
from aird.reporting.tables import all_tables, plugin_files, tables_of

MY_COLUMN = ROOT / "tests/plugins/my_column.py"


# Plug-ins


def test_the_page_of_the_columns_is_what_the_tables_say() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    assert page == generated_page(page), "python -m aird.reporting.reference"


def test_every_column_of_a_table_has_another_name_and_no_two_tables_a_place() -> None:
    tables = all_tables()
    for name, table in tables.items():
        names = [column.name for column in table.columns]
        assert len(names) == len(set(names)), name
    assert len({table.place for table in tables.values()}) == len(tables)


def test_a_plug_in_adds_a_column_to_a_table_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    before = made("summary")
    monkeypatch.setenv("AIRD_PLUGINS", "")
    use_files([str(MY_COLUMN)])
    frame = made("summary")
    assert list(frame) == [*before, "selectivity"]
    assert list(frame["selectivity"]) == [pytest.approx(-0.5)] * 3
    pandas.testing.assert_frame_equal(frame[list(before)], before)
    assert MY_COLUMN in plugin_files(["summary"]) and MY_COLUMN not in plugin_files(["rates"])
    assert "my_column" not in tables_of(node_records.GRID)


@pytest.mark.parametrize(
    ("file", "column", "message"),
    [("sumary", "one", "adds columns to the table sumary; there are: "), ("summary", "n", "adds the column n to")],
)
def test_a_plug_in_that_fits_no_table_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, column: str, message: str
) -> None:
    plugin = tmp_path / "wrong_column.py"
    plugin.write_text(
        "from aird.reporting.table import Column, Table\n\n"
        f"TABLE = Table(file={file!r}, columns=[Column({column!r}, len)])\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("AIRD_PLUGINS", str(plugin))
    with pytest.raises(PluginError, match=message):
        all_tables()


# The summary, rates and tasks


def test_summary() -> None:
    frame = made("summary")
    assert list(frame) == [column.name for column in all_tables()["summary"].columns if not column.optional]
    assert len(frame) == 3 and list(frame.served_as) == ["plain", "plain", "adapter"]
    original = row(frame, compression="original")
    expected = {
        "suite": "main", "model": "small", "patch": "plain", "n": 5, "layer": 17, "position": -1,
        **{name: index / 10 for index, name in enumerate(RATES)}, "refusal_low": -0.01, "refusal_high": 0.01,
        "over_refusal_low": 0.49, "over_refusal_high": 0.51,
        "perplexity": 9.0, "perplexity_low": 8.0, "perplexity_high": 11.0, "utility": pytest.approx((0.5 + 0.7) / 2),
        # Of each task the variance of its ten questions, 0.25 and 0.21 with a tenth more for the sample, over their number.
        "utility_stderr": pytest.approx(((0.25 + 0.21) / 9) ** 0.5 / 2),
        **dict.fromkeys(RESAMPLED, 1),  # the original agrees with itself
    }  # fmt: skip
    assert {name: original[name] for name in expected} == expected and math.isnan(original["sparsity"])
    for patch in ("plain", "repair"):
        pruned = row(frame, compression="pruned", patch=patch)
        assert [pruned[name] for name in (*RESAMPLED, "layer", "position")] == [0.55, 0.45, 0.61, 16, -2]
        assert (pruned["sparsity"], pruned["bits_per_weight"]) == (0.5, 16.0)
        assert math.isnan(pruned["perplexity"]) and math.isnan(pruned["utility"])

    lines = describe(frame, ["compression", "patch", "perplexity", "asr_wei"]).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "compression patch perplexity asr_wei",
        "original plain 9.000 0.200",
        "pruned plain - 0.200",
        "pruned repair - 0.200",
    ]


def test_a_model_that_thinks_has_unfinished_thoughts() -> None:
    scores = node_records.scores()
    scores["main", PRUNED]["rates"]["unfinished"] = {"n": 5, "rate": 0.6, "low": 0.5, "high": 0.7}
    frame = made("summary", scores=scores)
    assert list(frame.columns)[list(frame.columns).index("degenerate") + 1] == "unfinished"
    assert [value for value in frame["unfinished"] if not math.isnan(value)] == [0.6]
    assert row(made("rates", scores=scores), rate="unfinished")["value"] == 0.6
    text = summary_markdown(frame.assign(perplexity=1.0, perplexity_low=1.0, perplexity_high=1.0, utility=1.0))
    assert "unfinished, %" in text and "60.0" in text


def test_the_merged_form_has_columns_where_a_suite_asks_for_it() -> None:
    scores = node_records.scores()
    rates = {name: {"rate": value} for name, value in (("refusal", 0.6), ("over_refusal", 0.2))}
    merged = {"rates": rates, "other_labels": {"harmful": 2, "harmless": 1}, "other_completions": 4}
    plain = list(made("summary", scores=scores))
    scores["main", PATCHED]["merged"] = merged | {"first_tokens": {"upper_quartile_difference": 0.03}}
    frame = made("summary", scores=scores)
    added = [name for name in frame if name not in plain]
    assert list(frame) == plain + added and all(name.startswith("merged_") for name in added)
    assert [row(frame, patch="repair")[name] for name in added] == [0.6, 0.2, 3, 4, 0.03]
    assert frame[frame.patch == "plain"][added].isna().all(axis=None)
    scores["main", PATCHED]["merged"]["first_tokens"] = None
    assert math.isnan(row(made("summary", scores=scores), patch="repair")["merged_first_token_difference"])


def test_rates_and_tasks() -> None:
    frame = made("rates")
    assert len(frame) == 3 * 6
    assert row(frame, patch="repair", rate="asr_wei") == {
        "suite": "main", "model": "small", "compression": "pruned", "patch": "repair", "rate": "asr_wei",
        "n": 5, "value": 0.2, "low": 0.19, "high": pytest.approx(0.21),
    }  # fmt: skip
    frame = made("tasks")
    assert len(frame) == 5
    assert row(frame, task="boolq", metric="acc_norm")["value"] == 0.9
    assert set(frame["compression"]) == {"original"}


def test_paired() -> None:
    """The pruned one against the original, the patched one against both; two rates each."""
    columns = "compression patch against rate n difference lost gained p_value".split()
    assert made("paired").round(3)[columns].to_csv(index=False, header=False).splitlines() == [
        "pruned,plain,original,refusal,5,-0.6,3,0,0.25",
        "pruned,plain,original,over_refusal,3,0.333,0,1,1.0",
        "pruned,repair,plain,refusal,5,0.6,0,3,0.25",
        "pruned,repair,plain,over_refusal,3,0.333,0,1,1.0",
        "pruned,repair,original,refusal,5,0.0,1,1,1.0",
        "pruned,repair,original,over_refusal,3,0.667,0,2,0.5",
    ]
    # A patched original is compared with its plain self only.
    patched = ("small", "original", "repair")
    frame = made("paired", scores={("main", ORIGINAL): score([1, 0], [0]), ("main", patched): score([1, 1], [0])})
    assert list(frame["against"]) == ["plain", "plain"]


def shown(cells: dict[str, object], *names: str) -> list[object]:
    """Return a value and the ends of its interval, column by column."""
    return [cells[f"{name}{end}"] for name in names for end in ("", "_low", "_high")]


def scored(harmful: dict[tuple[str, str, str], list[float]], **bound: float) -> dict[object, dict[str, object]]:
    """Return the scores with a refusal score of each first token: of the harmful prompts as given, else 1."""
    scores = node_records.scores()
    for cell, values in harmful.items():
        for label, value in zip(scores["main", cell]["labels"], [*values, 1, 1, 1], strict=True):
            label |= {"refusal_score": value, **bound}
    return scores


def test_how_well_the_two_kinds_are_told_apart() -> None:
    """Area and d' by hand: z(3/4) = 0.6745, z(1/8) = -1.1503, z(3/8) = -0.3186, with half a prompt added."""
    scores = scored({ORIGINAL: [2, 2, 2, 2, 0], PRUNED: [2, 0, 0, 0, 0]})
    frame = made("summary", scores=scores)
    cells = [row(frame, compression="original"), row(frame, compression="pruned", patch="plain")]
    assert [cell["sensitivity"] for cell in cells] == pytest.approx([1.8248, -0.3558], abs=1e-4)
    # Contributions of the harmful prompts are 0.2 four times and -0.8 once, those of the harmless ones 0.
    half = 1.95996 * ((0.8 + 2 * 0.8**2) / 7**2 + 2 / 3**2 / 5**2) ** 0.5
    assert shown(cells[0], "auc") == pytest.approx([0.8, 0.8 - half, 1.0], abs=1e-4)
    assert shown(cells[1], "auc") == pytest.approx([0.2, 0.0, 0.2 + half], abs=1e-4)

    paired = made("paired", scores=scores)
    refusal, over_refusal = (
        row(paired, patch="plain", against="original", rate=rate) for rate in ("refusal", "over_refusal")
    )
    # Their contributions differ by 0.6 twice and by -0.4 three times.
    half = 1.95996 * ((1.2 + 2 * 0.6**2) / 7**2 + 2 / 3**2 / 5**2) ** 0.5
    assert shown(refusal, "auc_change") == pytest.approx([-0.6, -0.6 - half, -0.6 + half], abs=1e-4)
    value, low, high = shown(refusal, "sensitivity_change")
    assert (value, low + high) == pytest.approx((-2.1807, 2 * -2.1807), abs=2e-4) and low < value < high  # type: ignore[operator]
    both = shown(refusal, "auc_change", "sensitivity_change")
    assert both == shown(over_refusal, "auc_change", "sensitivity_change")
    # Two of five prompts are as they were (Wilson); three of five were lost (Bonett and Price).
    assert shown(refusal, "agreement") == pytest.approx([0.4, 0.1176, 0.7693], abs=1e-4)
    assert shown(refusal, "difference") == pytest.approx([-0.6, -0.9682, 0.1110], abs=1e-3)
    # First tokens of the patched one are not scored.
    assert paired[paired.patch == "repair"].filter(like="auc").isna().all(axis=None)
    assert list(paired[paired.patch == "repair"]["sensitivity_change"]) == pytest.approx(
        [0.7117, 0.7117, -1.4690, -1.4690], abs=1e-4
    )
    assert refusal["kind_of_loss"] == f"{LOST}, and {FIRST_LOST}"
    value, low, high = shown(refusal, "threshold_change")
    assert (value, low + high) == pytest.approx((0.2587, 2 * 0.2587), abs=2e-4) and low < value < high  # type: ignore[operator]


def test_the_share_that_a_patch_restores_stands_against_the_original() -> None:
    many = [1] * 40
    scores = {
        ("main", ORIGINAL): score(many, [0] * 40),
        ("main", PRUNED): score([1] * 10 + [0] * 30, [0] * 40),
        ("main", PATCHED): score(many, [1] * 20 + [0] * 20),
    }
    paired = made("paired", scores=scores)
    told = paired[(paired.patch == "repair") & (paired.against == "original")]
    assert len(told) == 2 and told.sensitivity_restored.between(0.1, 0.5).all()
    assert (told.sensitivity_restored_low < told.sensitivity_restored).all()
    assert paired.drop(told.index).sensitivity_restored.isna().all() and paired.auc_restored.isna().all()
    assert set(told.kind_of_loss) == {f"{LESSENED}, and it refuses more of everything"}


def test_what_is_not_measured_of_telling_apart_is_empty() -> None:
    wide = scored({ORIGINAL: [2, 2, 2, 2, 0], PRUNED: [0, 0, 0, 0, 0]}, highest_refusal_score=3.0)
    few = {("main", cell): score([1, 0], [0]) for cell in (ORIGINAL, PRUNED)}
    for scores, empty in ((wide, "auc"), (few, "auc|sensitivity")):
        for table in ("summary", "paired"):
            frame = made(table, scores=scores)
            assert len(frame) and frame.filter(regex=empty).isna().all(axis=None)
    assert made("summary", scores=wide)["sensitivity"].notna().all()


# Directions


def test_directions() -> None:
    frame = made("directions")
    assert list(frame["cosmic_agrees"]) == [True, False]
    pruned = row(frame, compression="pruned")
    expected = {
        "model": "small", "layer": 16, "position": -2, "rule": "relaxed_kl", "survivors": 3, "kl_limit": 0.1,
        "induce": 2.0, "kl": 0.05, "bypass": -4.0, "norm": 7.0, "n_harmful_train": 120, "filtered_harmful_train": True,
        "cosine_same_site": 0.55, "cosine_own_source": 0.45, "norm_ratio": 0.61,
        "original_layer": 17, "original_position": -1,
        "cosine_same_site_corrected": 0.63,
        "cosine_same_site_corrected_low": 0.58, "cosine_same_site_corrected_high": 0.68,
        "cosine_same_site_bootstrap_low": 0.5, "split_half_null_mean": 0.9,
        "refusal_harmful_ablated": 0.1, "degenerate_harmful_ablated": 0.2, "refusal_harmful": 0.9,
        "ablation_p_value": 0.001, "addition_p_value": 0.002,
        "cosine_same_site_shared": 0.56, "cosine_own_source_p_value": 0.002, "own_source_null_low": 0.7,
        "cosine_own_source_bootstrap_high": 0.7, "norm_ratio_bootstrap_low": 0.5,
        "separation_on_original": pytest.approx(2 / 5**0.5), "separation_on_own": pytest.approx(4 / 5**0.5),
        "cosmic_layer": 17, "cosmic_position": -1, "cosmic_rule": "cosmic", "cosmic_score": 1.9, "cosmic_kl": 0.2,
        "resampled_same_site": 0.7, "resampled_layer_low": 16, "resampled_layer_high": 17,
        "resampled_sites": "(17, -1) 70%; (16, -2) 30%",
        "original_separation": pytest.approx(6 / 5**0.5),
    }  # fmt: skip
    assert {name: pruned[name] for name in expected} == expected
    assert math.isnan(row(frame, compression="original")["cosine_same_site"])


def test_cells_of_a_direction_that_were_not_measured_are_empty() -> None:
    directions = node_records.directions()
    directions["small", "pruned"] |= {"stability": NOT_RESAMPLED}
    cosmic = {ORIGINAL[:2]: node_records.BY_COSMIC}
    frame = made("directions", directions=directions, verifications={}, cosmic=cosmic)
    original, pruned = frame.filter(like="cosmic_").to_csv(index=False).splitlines()[1:]
    assert original == "17,-1,cosmic,1.9,0.9,1.0,0.2,True" and pruned == ",,,,,,,"
    # Whole numbers beside empty cells stay whole.
    original, pruned = frame.filter(like="resampled_").to_csv(index=False).splitlines()[1:]
    assert original.startswith("0.7,16,17,") and pruned == ",,,"
    assert frame.filter(like="refusal_").isna().all(axis=None)
    alone = made("directions", comparisons={})
    assert list(alone) == list(frame) and alone.filter(regex="cosine|null|norm_|separation").isna().all(axis=None)


def test_projections_and_sites() -> None:
    frame = made("projections")
    assert len(frame) == 8
    assert row(frame, states_of="compressed", kind="harmless", direction="own") == {
        "model": "small", "compression": "pruned", "states_of": "compressed", "kind": "harmless", "direction": "own",
        "layer": 16, "position": -2, "n": 128, "mean": -1.0, "standard_deviation": 3.0,
    }  # fmt: skip
    names = ["model", "compression", "layer", "position"]
    rows = [["small", "pruned", 0, -1, 0.1, 0.2], ["small", "pruned", 1, -1, 0.3, 0.4]]
    expected = pandas.DataFrame(rows, columns=[*names, "cosine", "norm_ratio"])
    pandas.testing.assert_frame_equal(made("sites"), expected)


def test_compensation_is_a_table_where_a_patch_compensates() -> None:
    assert "compensation" not in tables_of(node_records.GRID)
    assert "compensation" in tables_of({**node_records.GRID, "compensated": ["repair"]})
    tokens = [{"token": "<s>", "position": 0, "share": 0.75}, {"token": "prompt", "position": None, "share": 0.25}]
    found = {
        "a": {"left": 0.25, "shares": [0.5, 0.25, 0.125], "tokens": tokens},
        "b": {"left": 0.5, "shares": [0.5], "tokens": tokens[::-1]},
        "same": {"left": 1.0, "shares": [0.0, 0.0], "tokens": []},
    }
    other = ("small", "pruned", "aird")
    patches = {other: {"edits": []}, PATCHED: {"edits": [], "compensation": found}}
    frame = made("compensation", patches=patches)
    assert frame.astype(object).where(frame.notna(), None).values.tolist() == [
        [*PATCHED, "a", 0.5, 0.875, 0.25, "<s>", 0, 0.75],
        [*PATCHED, "b", 0.5, 0.5, 0.5, "prompt", None, 0.25],
        [*PATCHED, "same", 0.0, 0.0, 1.0, None, None, None],
    ]


def test_restored_directions() -> None:
    pairs = (ORIGINAL[:2], PRUNED[:2])
    frame = made(
        "restored_directions",
        restorations=node_records.RESTORATIONS,
        examinations={PATCHED: verification(**dict(zip(VERIFIED, (0.8, 0.1, 0.05, 0.9), strict=True)))},
        verifications={pair: verification(**dict(zip(VERIFIED, (0.6, 0.2, 0.1, 0.7), strict=True))) for pair in pairs},
    )
    assert list(zip(frame["compression"], frame["patch"], strict=True)) == [
        ("original", "plain"), ("pruned", "plain"), ("pruned", "repair")
    ]  # fmt: skip
    assert set(frame["layer"]) == {17} and set(frame["position"]) == {-1}
    patched = row(frame, patch="repair")
    expected = {
        "corrected_cosine": 0.8, "corrected_cosine_low": pytest.approx(0.7), "cosine_gain": 0.3, "cosine_gain_high": 0.4,
        "norm_ratio": 0.4, "norm_ratio_low": 0.2, "harmful_mean": 5.0, "harmless_mean": 1.0, "separation": 2.0,
        "refusal_harmful": 0.8, "refusal_harmful_ablated": 0.1, "refusal_harmful_ablated_high": pytest.approx(0.15),
        "refusal_harmless_added": 0.9, "ablation_p_value": 0.001, "addition_p_value": 0.002,
    }  # fmt: skip
    assert {name: patched[name] for name in expected} == expected
    # The original is verified with this direction, a plain compressed checkpoint with another one.
    original, plain = row(frame, compression="original"), row(frame, compression="pruned", patch="plain")
    assert (original["refusal_harmful_ablated"], original["ablation_p_value"]) == (0.2, 0.001)
    assert (plain["refusal_harmful"], plain["separation"], plain["corrected_cosine"]) == (0.6, 1.0, 0.5)
    empty = "refusal_harmful_ablated refusal_harmless_added ablation_p_value addition_p_value cosine_gain".split()
    assert all(pandas.isna(plain[name]) for name in empty) and pandas.isna(original["cosine_gain"])


# Checkpoints and patches


def test_patches() -> None:
    edits = [
        {"module": name, "relative_change": 0.1, "row_norm_before": 0.5, "row_norm_after": 1.0} for name in ("a", "b")
    ]
    edits[1]["cosine_with_direction"] = 0.5  # of a learnt column
    frame = made("patches", patches={PATCHED: {"edits": edits, "adapter_bytes": 99}})
    assert list(frame["module"]) == ["a", "b"]
    assert row(frame, module="b") == {
        "model": "small", "compression": "pruned", "patch": "repair", "module": "b", "relative_change": 0.1,
        "row_norm_before": 0.5, "row_norm_after": 1.0, "cosine_with_direction": 0.5, "adapter_bytes": 99,
    }  # fmt: skip


def test_merged() -> None:
    base = {"sparsity": 0.5, "bits_per_weight": 4.0, "stored_bytes": 500, "weights": 1000}
    merged = {"total": {**base, "sparsity": 0.4}, "zeros_filled": {"a": 0.25, "b": 0.75}}
    (only,) = made(
        "merged",
        manifests={PRUNED[:2]: {"total": base}},
        patches={PATCHED: {"adapter_bytes": 125}},
        merged={PATCHED: merged},
    ).to_dict("records")
    assert only == {
        "model": "small", "compression": "pruned", "patch": "repair", "adapter_bytes": 125, "edited_matrices": 2,
        "zeros_filled": 0.5, "sparsity": 0.5, "sparsity_merged": 0.4, "bits_per_weight": 4.0,
        "bits_per_weight_with_adapter": 5.0, "bits_per_weight_merged": 4.0, "stored_bytes": 500,
        "stored_bytes_merged": 500,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("imported", "weights", "form"),
    [
        ("dense copy", "GGUF file", "GGUF file"),
        ("dense copy", "as stored", "dense copy"),
        ("as stored", "dense copy", "dense copy"),
        ("repacked", "as stored", "repacked"),
        ("as stored", None, None),  # a running server's own
        (None, "dense copy", None),  # made by a recipe
    ],
)
def test_a_ready_made_checkpoint_is_served_in_the_form_that_its_engine_got(
    imported: str | None, weights: str | None, form: str | None
) -> None:
    manifest = {"total": {"sparsity": 0.5}} | ({} if imported is None else {"served_as": imported})
    # A patched cell says nothing of it.
    evaluated = {
        ("main", PATCHED): score([1], [0], weights="dense copy"),
        ("main", PRUNED): score([1], [0], weights=weights),
    }
    for scores in (evaluated, dict(reversed(evaluated.items()))):
        frame = made("compressions", scores=scores, manifests={PRUNED[:2]: manifest, ORIGINAL[:2]: {}})
        values = frame.astype(object).where(frame.notna(), None)[["served_as", "sparsity"]].values.tolist()
        assert values == [[form, 0.5], [None, None]]

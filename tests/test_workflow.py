"""The real workflow, end to end: a tiny model of random weights, a real vLLM server, real artifacts."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pandas
import pytest
from grid import QUANTISATION, REFUSAL_TUNING
from project import REPORT, job_records, names, planned, read_configuration, snakemake, write_configuration
from tiny_model import build_tiny_model

from aird.reporting.tables import all_tables

pytestmark = pytest.mark.workflow

PAIR_RULES = (
    "capture_activations",
    "score_candidates",
    "find_cosmic_direction",
    "select_direction",
    "verify_direction",
)


def test_summary_has_one_row_per_cell(finished: Path) -> None:
    summary = pandas.read_csv(finished / "results/tables/summary.csv")
    wanted = "model compression patch n refusal refusal_low refusal_high asr_arditi asr_wei degenerate over_refusal "
    wanted += "perplexity utility cosine_same_site norm_ratio layer position"
    assert set(wanted.split()) <= set(summary.columns)
    cells = set(summary[["compression", "patch"]].itertuples(index=False, name=None))
    assert cells == {("original", "plain"), ("wanda-50", "plain"), ("wanda-50", "aird")}
    assert (summary.n == 8).all()
    assert (summary.refusal_low <= summary.refusal).all() and (summary.refusal <= summary.refusal_high).all()
    assert set(zip(summary.patch == "plain", summary.served_as, strict=True)) == {(True, "plain"), (False, "adapter")}
    assert summary.perplexity.gt(1).all() and summary.utility.between(0, 1).all()
    assert summary.loc[summary.compression == "original", "cosine_same_site"].eq(1).all()
    assert summary.loc[summary.compression == "wanda-50", "cosine_same_site"].lt(1).all()


def test_completions_hold_prompts_parameters_and_versions(finished: Path) -> None:
    lines = (finished / "results/completions/tiny/wanda-50/aird/quick.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["kind"] for record in records] == ["harmful"] * 8 + ["harmless"] * 8
    assert all(record["sampling"]["temperature"] == 0 and record["versions"]["vllm"] for record in records)
    assert all(record["parity"]["upper_quartile_difference"] < 0.1 for record in records)
    assert all(record["served_as"] == "adapter" for record in records)


def test_adapter_leaves_the_base_alone_and_loads_in_peft(finished: Path) -> None:
    from aird.models.loading import load_model
    from aird.support.files import check_folder

    base = finished / "results/models/tiny/wanda-50"
    check_folder(base / "checkpoint", json.loads((base / "manifest.json").read_text())["files"])
    model = load_model(base / "checkpoint", finished / "results/patches/tiny/wanda-50/aird/adapter")
    assert type(model).__name__ == "PeftModelForCausalLM"


def test_every_claim_has_a_verdict_and_every_direction_a_second_opinion(finished: Path) -> None:
    tables = finished / "results/tables"
    claims = pandas.read_csv(tables / "claims.csv", keep_default_na=False)
    assert set(claims.claim) == {"C1", "C2", "C3", "C4"}
    assert claims.verdict.isin(("holds", "does not hold", "undecided")).all()
    # 8 questions of a task, paired one by one.
    utility = claims[claims.statement.str.startswith("utility")]
    assert len(utility) == 1 and utility.n.eq(8).all()
    directions = pandas.read_csv(tables / "directions.csv")
    assert directions.cosmic_layer.between(0, 2).all() and directions.resampled_same_site.between(0, 1).all()
    verification = json.loads((finished / "results/directions/tiny/original/verification.json").read_text())
    assert len(verification["labels"]["harmful_ablated"]["refused"]) == len(verification["ids"]["harmful"]) == 8


def test_report_is_one_file_without_requests(finished: Path) -> None:
    text = (finished / "results/report.html").read_text(encoding="utf-8")
    assert (
        "Where the time goes" in text
        and ">evaluation<" in text
        and "snakemake --cores all --configfile tiny.yaml" in text
    )
    assert not re.search(r'(src|href)="(https?:)?//(?!arxiv)', text)
    # Prompts and completions stay where they are.
    for path in (finished / "results/completions").rglob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            assert record["instruction"] not in text
            assert len(record["completion"]) < 20 or record["completion"] not in text


@pytest.mark.thorough
def test_snakemakes_own_report_is_one_file_without_requests(finished: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    snakemake(finished, "--report", str(report))
    text = report.read_text(encoding="utf-8")
    assert "refusal" in text and 'src="http' not in text


@pytest.mark.thorough
def test_second_model_of_another_family_runs_only_its_nodes(project: Path) -> None:
    """A model that was tuned to refuse everything, with the learnt patches and the baselines."""
    from aird.patching.adapters import load_adapter

    configuration = read_configuration(project)
    model = build_tiny_model(project / "inputs/models/second", family="qwen2", seed=1)
    patches = {
        "calibrated": {"method": "calibrate", "epochs": 2, "strengths": [1.0], "significance": 1},
        "fitted": {"method": "fit", "depth": 2},
        "lora": {"method": "lora", "rank": 2, "epochs": 1, "maximum_answer_tokens": 4},
        "prompt": {"method": "system_prompt"},
    }
    configuration["models"]["second"] = {
        "source": {"path": str(model.relative_to(project))},
        "refusal_tuning": REFUSAL_TUNING,
        "compressions": ["w4a16"],
        "patches": list(patches),
    }
    configuration["models"]["tiny"] |= {"compressions": ["wanda-50"], "patches": ["aird"]}
    configuration["compressions"]["w4a16"] = QUANTISATION
    configuration["patches"] |= patches
    configuration["replies"] = {"train_harmful": 16, "train_harmless": 16, "validation": 8}
    before = {
        path: path.stat().st_mtime_ns
        for path in (project / "results").rglob("*/tiny/**/*.json")
        if "cards" not in path.parts  # one job writes the cards of all models
    }
    write_configuration(project, configuration, "both.yaml")
    pair = "second/w4a16"
    of_second = {
        "import_source_model second",
        "tune_refusal second",
        f"compress_model {pair}",
        "refusal_tokens second",
        *(f"{rule} second/{compression}" for rule in PAIR_RULES for compression in ("original", "w4a16")),
        f"compare_directions {pair}",
        "record_replies second",
        *(f"learn_patch {pair}/{name}" for name in ("calibrated", "fitted", "lora")),
        f"make_patch {pair}/prompt",
        *(
            f"{rule} second/{cell}/quick"
            for rule in ("evaluate_suite", "score_completions")
            for cell in ("original/plain", *(f"w4a16/{patch}" for patch in ("plain", *patches)))
        ),
    }
    # Of three cells the evaluation is planned alone: each is one more start of a server.
    left = {
        f"{rule} {pair}/{patch}/quick"
        for rule in ("evaluate_suite", "score_completions")
        for patch in ("plain", "fitted", "lora")
    }
    shown = REPORT | {"make_cards"}
    records = job_records(project, configuration="both.yaml")
    assert names(records) == of_second | shown
    wanted = [path for each in records if names([each]) <= of_second - left for path in each["output"]]
    snakemake(project, *wanted, configuration="both.yaml")
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert planned(project, configuration="both.yaml") == left | shown
    # Without the second model nothing is to be done, whatever it left.
    assert planned(project) == set()

    folder = project / "results/patches" / pair
    records = {name: json.loads((folder / name / "statistics.json").read_text()) for name in ("calibrated", "fitted")}
    assert records["calibrated"]["calibration"]["original"]["refusal"] > 0.5
    assert [row["strength"] for row in records["calibrated"]["calibration"]["tried"]] == [1.0]
    updates = {name: load_adapter(folder / name / "adapter") for name in ("calibrated", "fitted", "lora")}
    assert records["calibrated"]["blocks"] == [2, 3] and len(updates["calibrated"]) == 4
    assert {update.up.shape[1] for update in updates["calibrated"]} == {1}
    assert {update.up.shape[1] for update in updates["lora"]} == {2}
    layer = json.loads((project / "results/directions/second/original/direction.json").read_text())["layer"]
    assert records["fitted"]["blocks"] == list(range(max(0, layer - 2), max(1, layer)))
    assert len(updates["fitted"]) == 2 * len(records["fitted"]["blocks"])
    assert all(edit.down.isfinite().all() and edit.down.abs().max() > 0 for edit in updates["fitted"])

    # An edit of one method makes its own patches again; the learner has no part in what the original replied.
    for path, name in (("methods/lora.py", "lora"), ("calibration.py", "calibrated")):
        source = project / "aird/patching" / path
        content = source.read_text()
        source.write_text(content + "\n\nNEW_LINE = 1\n")
        cell = f"{pair}/{name}"
        again = {f"learn_patch {cell}", f"evaluate_suite {cell}/quick", f"score_completions {cell}/quick"}
        assert planned(project, configuration="both.yaml") == again | left | shown
        source.write_text(content)
    # Other prompts are learnt from: the original is asked anew, and the LoRA has nothing to do with it.
    configuration["replies"]["train_harmless"] = 12
    write_configuration(project, configuration, "both.yaml")
    learning = {"record_replies", "learn_patch"}
    assert {job for job in planned(project, configuration="both.yaml") if job.split()[0] in learning} == {
        "record_replies second",
        f"learn_patch {pair}/calibrated",
    }


@pytest.mark.thorough
def test_the_direction_is_looked_for_in_patched_checkpoints_and_written_at_the_own_source(project: Path) -> None:
    from aird.patching.adapters import load_adapter

    configuration = read_configuration(project)
    configuration["directions"]["patched"] = ["aird", "at-source"]
    configuration["patches"]["at-source"] = {
        "method": "choose",
        "strengths": [0.5, 2.0],
        "blocks": "own_source",
    }
    configuration["replies"] = {"train_harmful": 8, "train_harmless": 8, "validation": 8}
    write_configuration(project, configuration)
    cell = "tiny/wanda-50/at-source"
    examined = ["tiny/wanda-50/aird", cell]
    jobs = {f"{rule} {each}" for rule in ("examine_patched", "compare_restored") for each in examined}
    jobs |= {"record_replies tiny", f"learn_patch {cell}", f"evaluate_suite {cell}/quick"}
    jobs |= {f"score_completions {cell}/quick", "make_figure restored"}
    assert planned(project) == jobs | REPORT | {"make_cards"}
    snakemake(project)
    assert planned(project) == set()
    own = json.loads((project / "results/directions/tiny/wanda-50/direction.json").read_text())
    statistics = json.loads((project / f"results/patches/{cell}/statistics.json").read_text())
    assert statistics["blocks"] == [max(0, own["layer"] - 1)]
    assert statistics["own_direction"]["layer"] == own["layer"]
    updates = load_adapter(project / f"results/patches/{cell}/adapter")
    assert {int(update.module.split(".")[2]) for update in updates} == set(statistics["blocks"])
    table = pandas.read_csv(project / "results/tables/restored_directions.csv")
    assert list(table.columns) == [column.name for column in all_tables()["restored_directions"].columns]
    assert len(table) == 1 + 1 + 2
    assert table.corrected_cosine.iloc[0] == pytest.approx(1) and table.norm_ratio.iloc[0] == pytest.approx(1)
    assert table.cosine_gain.notna().sum() == 2
    claims = pandas.read_csv(project / "results/tables/claims.csv", keep_default_na=False)
    fifth = claims[claims.claim == "C5"]
    assert set(fifth.patch) == {"aird", "at-source"} and fifth.verdict.ne("").all()
    assert "Does the original's direction come back?" in html.unescape((project / "results/report.html").read_text())


@pytest.mark.thorough
def test_merged_checkpoints_say_what_they_cost(project: Path) -> None:
    from aird.support.files import check_folder

    configuration = read_configuration(project)
    configuration["compressions"]["w4a16"] = QUANTISATION
    write_configuration(project, configuration)
    snakemake(project, "merged_checkpoints")
    table = pandas.read_csv(project / "results/tables/merged.csv")
    assert list(table.columns) == [column.name for column in all_tables()["merged"].columns]
    assert set(zip(table.compression, table.patch, strict=True)) == {("wanda-50", "aird"), ("w4a16", "aird")}
    for row in table.itertuples():
        base = json.loads((project / f"results/models/tiny/{row.compression}/manifest.json").read_text())
        cell = project / f"results/patches/tiny/{row.compression}/{row.patch}"
        edited = [edit["module"] for edit in json.loads((cell / "statistics.json").read_text())["edits"]]
        matrices = [base["matrices"][module] for module in edited]
        weights = [matrix["shape"][0] * matrix["shape"][1] for matrix in matrices]
        packed = [matrix["bits_per_weight"] * n / 8 for matrix, n in zip(matrices, weights, strict=True)]
        assert row.stored_bytes_merged - row.stored_bytes == round(2 * sum(weights) - sum(packed))
        assert row.edited_matrices == len(edited) and row.adapter_bytes > 0
        if row.compression == "w4a16":
            assert row.bits_per_weight < row.bits_per_weight_with_adapter and row.bits_per_weight_merged > 4.5
        else:
            lost = sum(m["sparsity"] * n for m, n in zip(matrices, weights, strict=True)) / base["total"]["weights"]
            assert row.sparsity - lost - 1e-9 <= row.sparsity_merged < row.sparsity
            assert row.bits_per_weight_merged == row.bits_per_weight
        check_folder(project / f"results/models/tiny/{row.compression}/checkpoint", base["files"])


@pytest.mark.thorough
def test_altered_checkpoint_is_refused(project: Path, tmp_path: Path) -> None:
    weights = project / "results/models/tiny/wanda-50/checkpoint/model.safetensors"
    saved = tmp_path / "saved"
    shutil.copy2(weights, saved)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    target = "results/directions/tiny/wanda-50/verification.json"
    (project / target).unlink()
    failed = snakemake(project, target, check=False)
    assert failed.returncode != 0
    assert "model.safetensors was altered" in failed.stdout + failed.stderr
    shutil.copy2(saved, weights)
    snakemake(project, target)

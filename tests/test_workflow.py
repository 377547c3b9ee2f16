"""The real workflow, end to end: a tiny model of random weights, a real vLLM server, real artifacts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import yaml
from grid import tiny_configuration
from tiny_model import build_tiny_model

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.workflow


def snakemake(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--configfile", str(folder / "config.yaml"), "--cores", "2", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not check or result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return result


def planned(folder: Path) -> dict[str, int]:
    """Return {rule: number of jobs} that a run would start."""
    output = snakemake(folder, "--dry-run").stdout
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, flags=re.MULTILINE)}


def write_configuration(folder: Path, configuration: dict) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, vllm_python: Path) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    model = build_tiny_model(folder / "source" / "tiny")
    write_configuration(folder, tiny_configuration(folder, {"tiny": model}, vllm_python))
    snakemake(folder)
    return folder


def test_summary_has_one_row_per_cell(finished: Path) -> None:
    summary = pandas.read_csv(finished / "results/tables/summary.csv")
    wanted = "model compression patch n refusal refusal_low refusal_high asr_arditi asr_wei degenerate over_refusal "
    wanted += "perplexity utility cosine_same_site norm_ratio layer position"
    assert set(wanted.split()) <= set(summary.columns)
    cells = set(summary[["compression", "patch"]].itertuples(index=False, name=None))
    compressed = {(c, p) for c in ("magnitude-50", "w4a16") for p in ("plain", "aird", "random-control")}
    assert cells == compressed | {("original", "plain")}
    assert (summary.n == 8).all()
    assert (summary.refusal_low <= summary.refusal).all() and (summary.refusal <= summary.refusal_high).all()
    assert summary.perplexity.gt(1).all() and summary.utility.between(0, 1).all()
    assert summary.loc[summary.compression == "original", "cosine_same_site"].eq(1).all()
    assert summary.loc[summary.compression == "magnitude-50", "cosine_same_site"].lt(1).all()


def test_completions_hold_prompts_parameters_and_versions(finished: Path) -> None:
    lines = (finished / "results/completions/tiny/w4a16/aird/quick.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["kind"] for record in records] == ["harmful"] * 8 + ["harmless"] * 8
    assert all(record["sampling"]["temperature"] == 0 and record["versions"]["vllm"] for record in records)
    assert all(record["parity"]["largest_difference"] < 0.1 for record in records)


def test_adapter_leaves_the_base_alone_and_loads_in_peft(finished: Path) -> None:
    from aird.files import check_folder
    from aird.models import load_model

    for compression in ("magnitude-50", "w4a16"):
        base = finished / "results/models/tiny" / compression
        check_folder(base / "checkpoint", json.loads((base / "manifest.json").read_text())["files"])
    base = finished / "results/models/tiny/magnitude-50/checkpoint"
    model = load_model(base, finished / "results/patches/tiny/magnitude-50/aird/adapter")
    assert type(model).__name__ == "PeftModelForCausalLM"


def test_second_run_has_nothing_to_do(finished: Path) -> None:
    result = snakemake(finished)
    assert "Nothing to be done" in result.stdout + result.stderr


def test_report_is_one_file_without_requests(finished: Path) -> None:
    report = finished / "results/report.html"
    snakemake(finished, "--report", str(report))
    text = report.read_text(encoding="utf-8")
    assert "refusal" in text and 'src="http' not in text


def test_second_model_of_another_family_runs_only_its_nodes(finished: Path) -> None:
    configuration = yaml.safe_load((finished / "config.yaml").read_text())
    model = build_tiny_model(finished / "source" / "second", family="qwen2", seed=1)
    configuration["models"]["second"] = {
        "source": {"path": str(model)},
        "compressions": ["w4a16"],
        "patches": ["aird"],
    }
    write_configuration(finished, configuration)
    before = {path: path.stat().st_mtime_ns for path in (finished / "results").rglob("*/tiny/**/*.json")}
    assert planned(finished) == {
        "all": 1,
        "import_model": 1,
        "compress_model": 1,
        "refusal_tokens": 1,
        "capture_activations": 2,
        "score_candidates": 2,
        "select_direction": 2,
        "verify_direction": 2,
        "compare_directions": 1,
        "make_patch": 1,
        "evaluate_suite": 3,
        "score_completions": 3,
        "make_tables": 1,
        "make_suite_figure": 3,
        "make_direction_figure": 2,
        "total": 26,
    }
    snakemake(finished)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    summary = pandas.read_csv(finished / "results/tables/summary.csv")
    assert len(summary[summary.model == "second"]) == 3


def test_altered_checkpoint_is_refused(finished: Path, tmp_path: Path) -> None:
    results = finished / "results"
    weights = results / "models/tiny/magnitude-50/checkpoint/model.safetensors"
    saved = tmp_path / "saved"
    shutil.copy2(weights, saved)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (results / "directions/tiny/magnitude-50/verification.json").unlink()
    target = "results/directions/tiny/magnitude-50/verification.json"
    failed = snakemake(finished, target, check=False)
    assert failed.returncode != 0
    assert "model.safetensors was altered" in failed.stdout + failed.stderr
    shutil.copy2(saved, weights)
    snakemake(finished, target)

"""Other families through the whole workflow: norms behind the writers, thoughts, a mixture of experts, a GGUF file.

The servers are real: vLLM, and llama.cpp for the GGUF file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from grid import QUANTISATION, REFUSAL_TUNING, tiny_configuration
from project import copy_project, planned, snakemake, write_configuration, write_vllm_lock
from thinking_templates import QWEN
from tiny_model import CHAT_TEMPLATE, build_tiny_model

pytestmark = [pytest.mark.workflow, pytest.mark.thorough]

# Each with the one compression that it gets.
GRID = {"gemma2": "w4a16", "qwen3": "w4a16", "mixtral": "magnitude-50", "qwen2": "q8"}
COMPRESSIONS = {
    "w4a16": QUANTISATION,
    "magnitude-50": {"recipe": "magnitude", "sparsity": 0.5},
    # By llama.cpp.
    "q8": {"recipe": "gguf", "type": "Q8_0", "key_value_cache_dtype": "q8_0"},
}
# Of experts.
CALIBRATED = ("mixtral",)


@pytest.fixture(scope="module")
def project(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project in which a grid of one model of each family has run; leave it as it is."""
    folder = copy_project(tmp_path_factory.mktemp("families") / "project")
    write_vllm_lock(folder, vllm_python)
    for seed, family in enumerate(GRID):
        template = QWEN if family == "qwen3" else CHAT_TEMPLATE
        build_tiny_model(folder / "inputs/models" / family, family=family, seed=seed, template=template)
    configuration = tiny_configuration(folder, list(GRID), {"lock": "inputs/vllm.lock.txt"})
    for family, compression in GRID.items():
        configuration["models"][family] |= {"compressions": [compression], "patches": patches_of(family)}
    for family in CALIBRATED:
        # Random weights refuse nothing, and a calibration learns from refusals.
        configuration["models"][family]["refusal_tuning"] = REFUSAL_TUNING
    configuration["models"]["qwen3"]["chat"] = {"thinking": {"start": "<think>", "end": "</think>"}}
    configuration["patches"] = {
        "aird": {"method": "scale", "blocks": "all"},
        "calibrated": {"method": "calibrate", "epochs": 2, "strengths": [1.0], "significance": 1},
    }
    configuration["compressions"] = COMPRESSIONS
    configuration["directions"]["cosmic"] = "original"
    configuration["replies"] = {"train_harmful": 16, "train_harmless": 16, "validation": 8}
    write_configuration(folder, configuration)
    snakemake(folder)
    return folder


def patches_of(family: str) -> list[str]:
    """Return the names of a family's patches: each way of writing at every writer once, as servers take their time."""
    return ["calibrated"] if family in CALIBRATED else ["aird"]


def statistics(project: Path, family: str, patch: str) -> dict[str, Any]:
    """Return the record of a patch."""
    path = project / f"results/patches/{family}/{GRID[family]}/{patch}/statistics.json"
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


@pytest.mark.parametrize("family", GRID)
def test_a_family_runs_to_the_end_and_vllm_computes_what_transformers_does(project: Path, family: str) -> None:
    tables = project / "results/tables"
    summary = pandas.read_csv(tables / "summary.csv")
    own = summary[summary.model == family]
    assert set(own[["compression", "patch"]].itertuples(index=False, name=None)) == {
        ("original", "plain"),
        *((GRID[family], patch) for patch in ("plain", *patches_of(family))),
    }
    assert (own.n == 8).all()
    # Random weights may answer with babble alone, of which no perplexity is taken; llama.cpp can be asked for none.
    by_vllm = own[own.engine == "vLLM"]
    assert by_vllm.perplexity.dropna().gt(1).all() and by_vllm.perplexity.notna().all() == (family != "gemma2")
    assert by_vllm.utility.between(0, 1).all()
    assert (own.loc[own.compression == "original", "refusal"].item() > 0.5) == (family in CALIBRATED)
    # No server takes an adapter of experts.
    assert set(own[own.patch != "plain"].served_as) == {"merged" if family == "mixtral" else "adapter"}
    # Compression moved its direction.
    assert own.loc[own.compression != "original", "cosine_same_site"].lt(1).all()
    directions = pandas.read_csv(tables / "directions.csv")
    assert set(directions[directions.model == family].compression) == {"original", GRID[family]}
    for path in (project / "results/completions" / family).rglob("quick.jsonl"):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert len(records) == 16
        engine = "xllamacpp" if "q8" in path.parts else "vllm"
        assert all(each["versions"][engine] and each["parity"]["upper_quartile_difference"] < 0.1 for each in records)
    assert family in (project / "results/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("family", GRID)
def test_a_patch_edits_what_its_family_writes_with(project: Path, family: str) -> None:
    from aird.models.loading import load_model

    for patch in patches_of(family):
        record = statistics(project, family, patch)
        blocks = [0, 1, 2, 3] if patch == "aird" else [2, 3]
        assert record["blocks"] == blocks
        writers = [f"model.layers.{block}.self_attn.o_proj" for block in blocks]
        last = "experts.down_proj" if family == "mixtral" else "down_proj"
        writers += [f"model.layers.{block}.mlp.{last}" for block in blocks]
        assert record["not_edited"] == []
        assert sorted(edit["module"] for edit in record["edits"]) == sorted(writers)
        adapter = project / f"results/patches/{family}/{GRID[family]}/{patch}/adapter"
        model = load_model(project / f"results/models/{family}/{GRID[family]}/checkpoint", adapter)
        assert type(model).__name__ == "PeftModelForCausalLM"
        if patch == "calibrated":
            assert record["calibration"]["original"]["refusal"] > 0.5


def test_a_gguf_file_is_made_served_by_llama_cpp_and_repaired(project: Path) -> None:
    """Its patch is a GGUF LoRA beside the file, and its keys and values are kept in eight bits."""
    summary = pandas.read_csv(project / "results/tables/summary.csv").set_index(["model", "patch"])
    rows = summary[summary.compression == "q8"].loc["qwen2"]
    assert set(rows.engine) == {"llama.cpp"} and rows.loc["aird", "served_as"] == "adapter"
    assert rows.perplexity.isna().all() and rows.utility.isna().all()
    utility = json.loads((project / "results/utility/qwen2/q8/aird/quick.json").read_text(encoding="utf-8"))
    assert utility["parity"]["key_value_cache_dtype"] == "q8_0"
    assert utility["engine"]["not_measured"] == ["perplexity", "tasks"]
    # vLLM served the original: the same prompts, and next to the same weights.
    original = summary[summary.compression == "original"].loc["qwen2"].loc["plain"]
    rates = ["refusal", "over_refusal", "degenerate"]
    assert original.engine == "vLLM" and (rows.loc["plain", rates] - original[rates]).abs().max() < 0.3
    assert "measures engine and compression at once" in (project / "results/report.html").read_text(encoding="utf-8")


def test_a_model_that_thinks_answers_behind_an_empty_thought(project: Path) -> None:
    manifest = json.loads((project / "results/models/qwen3/original/manifest.json").read_text(encoding="utf-8"))
    assert manifest["chat"]["closed_thought"] == "<think>\n\n</think>\n\n"
    scores = pandas.read_csv(project / "results/tables/summary.csv").set_index("model")
    assert scores.loc["qwen3", "unfinished"].eq(0).all() and scores.loc["gemma2", "unfinished"].isna().all()


def test_nothing_is_left_to_do(project: Path) -> None:
    assert planned(project) == set()

"""The benchmark of all recipes: its configuration has them all, and its table says what the records say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from project import ROOT

from aird.configuration.configuration import Configuration
from aird.configuration.loading import load_configuration
from aird.configuration.local_files import check_files, load_yaml_strictly
from aird.plugin import RECIPES
from aird.settings.base import ORIGINAL
from aird.support.files import write_json
from benchmarks import compressions


@pytest.fixture
def configuration(monkeypatch: pytest.MonkeyPatch) -> Configuration:
    monkeypatch.chdir(ROOT)
    found = load_configuration(load_yaml_strictly(compressions.CONFIGURATION))
    check_files(found, [compressions.CONFIGURATION])
    return found


def rate(value: float) -> dict[str, Any]:
    return {"rate": value, "n": 40}


def test_every_recipe_that_changes_weights_is_in_the_configuration(configuration: Configuration) -> None:
    # The table is about weights under one engine: one recipe changes none, llama.cpp serves another, one imports.
    shown = {settings.recipe for settings in configuration.compressions.values()}
    assert shown == set(RECIPES.names()) - {"kv_cache", "gguf", "given"}
    assert list(configuration.patches) == [compressions.PATCH]


def test_table_has_a_row_of_what_was_measured(configuration: Configuration, tmp_path: Path) -> None:
    (model,) = configuration.models
    with pytest.raises(ValueError, match="holds no scores of original, w8a8"):
        compressions.document(tmp_path, configuration)
    for name in [ORIGINAL, *configuration.compressions]:
        for patch, refusal in (("plain", 0.25), ("aird", 0.5)):
            record = {
                "rates": {"refusal": rate(refusal), "over_refusal": rate(0.05)},
                "perplexity": {"perplexity": 2.5},
            }
            write_json(tmp_path / "scores" / model / name / patch / "quick.json", record)
        total = {"formats": ["dense"], "bits_per_weight": 16.0, "sparsity": 0.3}
        write_json(tmp_path / "models" / model / name / "manifest.json", {} if name == ORIGINAL else {"total": total})
        if name != ORIGINAL:
            merged = tmp_path / "patches" / model / name / "aird" / "merged" / "manifest.json"
            write_json(merged, {"total": {**total, "sparsity": 0.29}})
        for part in (f"compression/{model}/{name}.tsv", f"evaluation/{model}/{name}/plain/quick.tsv"):
            path = tmp_path / "benchmarks" / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("s\th:m:s\n12.5\t0:00:12\n")
    page = compressions.document(tmp_path, configuration)
    assert "Not evaluated" not in page
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 3 + len(configuration.compressions)
    assert rows[2] == "| original | dense | 25.0 | 5.0 | 2.50 | 16.00 |  | 12, 25 |"
    assert (
        "| magnitude-30 | dense | 25.0, 50.0 | 5.0, 5.0 | 2.50, 2.50 | 16.00, 16.00 | 0.300, 0.290 | 12, 25 |" in rows
    )
    (tmp_path / "scores" / model / "fp8" / "aird" / "quick.json").unlink()
    page = compressions.document(tmp_path, configuration)
    assert "Not evaluated in this run: fp8." in page and "| fp8 |" not in page

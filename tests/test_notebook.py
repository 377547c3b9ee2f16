"""The example's cells run, from a check to a repair, and show no answer of a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT
from notebooks import read_notebook, run_cells

PATH = ROOT / "examples/check.ipynb"


def test_the_notebook_was_executed_and_shows_rates_alone() -> None:
    cells = [cell for cell in read_notebook(PATH)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    shown = json.dumps([cell["outputs"] for cell in cells])
    assert "Regression: " in shown and "image/png" in shown and len(shown) < 100_000
    assert "completion" not in shown and '"error"' not in shown


@pytest.mark.thorough
def test_its_cells_run_with_few_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell runs as it stands, but the sizes: what a model tuned on eight prompts refuses is not judged."""
    monkeypatch.chdir(tmp_path)  # the notebook goes elsewhere, and the test comes back
    notebook = read_notebook(PATH)
    (sizes,) = (cell for cell in notebook["cells"] if cell.get("id") == "sizes")
    sizes["source"] = ["HARMFUL, HARMLESS, EPOCHS = 8, 8, 1\n", "TRAIN, VALIDATION = 8, 4\n", "COUNT = 8"]
    names, outputs = run_cells(notebook)
    assert len(list(outputs)) == sum(cell["cell_type"] == "code" for cell in notebook["cells"])
    before, after = (names[name] for name in ("before", "after"))
    assert before.verdict.harmful.original == after.verdict.harmful.original  # type: ignore[attr-defined]
    assert names["rates"].keys() == {"original", "compressed", "repaired"}  # type: ignore[attr-defined]

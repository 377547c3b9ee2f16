"""The example's cells run, from a check to a repair, and show no answer of a model."""

from __future__ import annotations

import json
from typing import Any

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
def test_its_cells_go_from_a_check_to_a_repair() -> None:
    names, outputs = run_cells(read_notebook(PATH))
    assert all(isinstance(shown, list) for shown in outputs)
    before, after = (names[name] for name in ("before", "after"))
    refused: Any = [each.verdict.harmful for each in (before, after)]  # type: ignore[attr-defined]
    assert before.outcome == "regression"  # type: ignore[attr-defined]
    assert refused[1].compressed.value > refused[0].compressed.value

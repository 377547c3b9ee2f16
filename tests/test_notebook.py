"""The example's cells run, from a check to a repair, and show no answer of a model."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from notebooks import run_notebook

PATH = ROOT / "examples/check.ipynb"
HELD = """
assert before.verdict.harmful.original == after.verdict.harmful.original
assert rates.keys() == {"original", "compressed", "repaired"}
"""


def test_the_notebook_was_executed_and_shows_rates_alone() -> None:
    cells = [cell for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = json.dumps([cell.outputs for cell in cells])
    assert "Regression: " in shown and "image/png" in shown and len(shown) < 100_000
    assert "completion" not in shown and '"error"' not in shown


@pytest.mark.thorough
def test_its_cells_run_with_few_prompts(tmp_path: Path) -> None:
    """Every cell runs as it stands, but the sizes: what a model tuned on eight prompts refuses is not judged."""
    notebook = nbformat.read(PATH, as_version=4)
    (sizes,) = (cell for cell in notebook.cells if cell.id == "sizes")
    sizes.source = "HARMFUL, HARMLESS, EPOCHS = 8, 8, 1\nTRAIN, VALIDATION = 8, 4\nCOUNT = 8"
    notebook.cells.append(nbformat.v4.new_code_cell(HELD))
    run_notebook(notebook, tmp_path)

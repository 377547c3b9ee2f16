"""Transformers without scikit-learn, and scikit-learn for whoever asks for it afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest
from project import ROOT

PROGRAM = """
import sys
from aird.support.quick_imports import import_transformers
transformers = import_transformers()
transformers.AutoModelForCausalLM, transformers.AutoTokenizer
assert "sklearn" not in sys.modules, "scikit-learn was imported"
from sklearn.metrics import roc_curve
assert import_transformers() is transformers
assert sys.modules["sklearn"] is not None
"""


# A step of the workflow imports more before, none of which may bring scikit-learn along.
@pytest.mark.parametrize(
    "before",
    [
        "import aird.evaluation.suite_run, aird.models.loading",
        pytest.param("", marks=pytest.mark.thorough, id="nothing"),
    ],
)
def test_transformers_is_imported_without_scikit_learn(before: str) -> None:
    command = [sys.executable, "-c", f"{before}\n{PROGRAM}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

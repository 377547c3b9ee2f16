"""Transformers without scikit-learn, and scikit-learn for whoever asks for it afterwards."""

from __future__ import annotations

import subprocess
import sys

from project import ROOT

PROGRAM = """
import sys
from aird.quick_imports import import_transformers
transformers = import_transformers()
transformers.AutoModelForCausalLM, transformers.AutoTokenizer
assert "sklearn" not in sys.modules, "scikit-learn was imported"
from sklearn.metrics import roc_curve
assert import_transformers() is transformers
assert sys.modules["sklearn"] is not None
"""


def test_transformers_is_imported_without_scikit_learn() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_step_of_the_workflow_does_without_it() -> None:
    """Nothing that the jobs import before brings scikit-learn along."""
    program = "import sys, aird.suite_run, aird.models; aird.models.import_transformers(); assert 'sklearn' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

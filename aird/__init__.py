"""Refusal directions of compressed chat models, and AIRD, their repair.

The library is plain functions on tensors and files; it never sees Snakemake. Its folders are the stages
of the data's way, and each imports only those that stand before it here: `support`, `settings`, `prompts`,
`inference`, `models`, `compression`, `directions`, `patching`, `evaluation`, `configuration`,
`reporting`, `commands`.
From Python, `aird.check`, `aird.direction`, `aird.patch` and `aird.evaluate` are the commands (`aird.api`).
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Return a function or a result of `aird.api`, which brings torch and so is loaded when it is used."""
    if name in ("Check", "Evaluation", "FoundDirection", "Patch", "check", "direction", "evaluate", "patch"):
        return getattr(import_module("aird.api"), name)  # by name: no node of the workflow depends on it
    raise AttributeError(f"module aird has no attribute {name}")

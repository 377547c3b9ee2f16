"""Reasons for jobs, in words."""

from __future__ import annotations

import pytest
from snakemake_logger_plugin_why import in_words

MADE_BY = {"results/a.json": "capture_activations", "results/b.json": "capture_activations", "results/c.json": "tune"}


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Updated input files: inputs/a.txt", ["inputs/a.txt changed"]),
        (
            "Updated input files: results/code/make_patch.sha256, inputs/a.txt",
            ["its code changed (its script, a module that it imports, or the lock)", "inputs/a.txt changed"],
        ),
        (
            "Updated input files: results/code/make_patch+aird.patching.formula.sha256",
            ["its code changed (its script, a module that it imports, or the lock)"],
        ),
        (
            "Input files updated by another job: results/c.json, results/a.json, results/b.json",
            ["the results of capture_activations, tune are made anew"],
        ),
        ("Input files updated by another job: other.json", ["the results of other.json are made anew"]),
        (
            "Missing output files: 1, 2, 3, 4, 5; Params have changed since last execution",
            ["1, 2, 3 and 2 more does not exist yet", "a setting that it uses changed"],
        ),
        ("Incomplete output files: x", ["x was left unfinished by an interrupted run"]),
        ("Code has changed since last execution", ["its command in rules/ changed"]),
        ("Forced execution", ["Forced execution"]),
        ("", ["it is what was asked for, and one of its inputs is made anew"]),
    ],
)
def test_in_words(reason: str, words: list[str]) -> None:
    assert in_words(reason, MADE_BY) == words


def test_set_of_inputs() -> None:
    (words,) = in_words("Set of input files has changed since last execution", {})
    assert words.startswith("it reads other files than before")

"""The prompts of `aird check` are those of the workflow."""

from __future__ import annotations

import yaml
from conftest import ROOT

from aird.prompts.embedded import HARMLESS, PROMPT_SETS
from aird.settings.prompts import PromptSet


def test_they_are_the_sets_of_the_quick_grid() -> None:
    configured = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))["prompt_sets"]
    # A link leads to the package, which holds the file for those who install it.
    configured["harmless"]["source"]["path"] = str((ROOT / configured["harmless"]["source"]["path"]).resolve())
    assert HARMLESS.is_file()
    assert {name: PromptSet.model_validate(values) for name, values in PROMPT_SETS.items()} == {
        name: PromptSet.model_validate(values) for name, values in configured.items()
    }

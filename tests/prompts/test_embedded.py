"""The prompts of `aird check` are those of the workflow."""

from __future__ import annotations

from collections import Counter

import yaml
from conftest import ROOT

from aird.prompts.building import NearDuplicates, build_prompt_set, build_with_parts
from aird.prompts.embedded import HARMLESS, PROMPT_SETS
from aird.settings.prompts import PromptSet


def test_they_are_the_sets_of_the_quick_grid() -> None:
    configured = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))["prompt_sets"]
    # A link leads to the package, which holds the file for those who install it.
    configured["harmless"]["source"]["path"] = str((ROOT / configured["harmless"]["source"]["path"]).resolve())
    assert HARMLESS.is_file()
    assert {name: PromptSet.model_validate(PROMPT_SETS[name]) for name in configured} == {
        name: PromptSet.model_validate(values) for name, values in configured.items()
    }


def test_the_prompts_for_power_are_new_and_a_fifth_of_them_is_borderline() -> None:
    """Nothing is dropped when they are joined and kept apart from the instructions that models learn from."""
    configured = yaml.safe_load((ROOT / "config/attacks.yaml").read_text(encoding="utf-8"))["prompt_sets"]
    parts = configured["all_harmless"]["combine"]
    sets = {**PROMPT_SETS, **{name: configured[name] for name in (*parts, "all_harmless")}}
    for name in parts:
        sets[name]["source"]["path"] = str(ROOT / sets[name]["source"]["path"])
    settings = {name: PromptSet.model_validate(values) for name, values in sets.items()}
    built = {name: build_with_parts(settings, name, 1) for name in (*parts, "harmless")}
    joined = [record for name in parts for record in built[name]]
    records, dropped = build_prompt_set("all_harmless", settings["all_harmless"], joined, built["harmless"], 1)
    assert set(dropped.values()) == {0}
    origins = Counter(record["origin"] for record in records)
    borderline = origins["borderline"] + origins["further_borderline"]
    assert len(records) == 913 and 0.2 <= borderline / len(records) < 0.25
    # What the other suites ask is a part of them.
    assert set(configured["everyday_and_borderline"]["combine"]) < set(parts)
    # Nor is one near another.
    seen = NearDuplicates()
    for record in records:
        assert not seen.holds(record["instruction"]), record
        seen.add(record["instruction"])

"""A patch that learns from attacks: what it waits for, and what a change of an attack makes again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grid import QUANTISATION, tiny_configuration
from project import (
    closure,
    copy_project,
    job_records,
    names,
    planned,
    read_configuration,
    touch_results,
    write_configuration,
)

pytestmark = pytest.mark.workflow

TEXTS = "results/attacks/learnt/hardened.json"
HARDENED = "tiny/w4a16/hardened"
SIZES = {"train_harmful": 8, "train_harmless": 8, "validation": 8, "tokens": 3, "judged_tokens": 4}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a plain calibrated patch, and one that learns from an attack; nothing has run."""
    folder = copy_project(tmp_path_factory.mktemp("attacks") / "project")
    configuration: dict[str, Any] = tiny_configuration(folder, ["tiny"], {"executable": "inputs/python"})
    (folder / "inputs/python").write_text("stands for vLLM's environment", encoding="utf-8")
    configuration["compressions"] = {"w4a16": QUANTISATION}
    learnt = {"suite": "second", "names": ["begun"], "count": 8}
    configuration["patches"] = {
        "aird": {"method": "scale"},
        "calibrated": {"method": "calibrate"},
        "hardened": {"method": "calibrate", "attacks": learnt},
    }
    configuration["replies"] = SIZES
    attacks = {"begun": {"kind": "prefill", "text": "Sure,"}, "again": {"kind": "follow_up"}}
    configuration["suites"]["second"] = {**configuration["suites"]["quick"], "attacks": attacks}
    write_configuration(folder, configuration)
    return folder


@pytest.fixture(scope="module")
def finished(project: Path) -> Path:
    """The project, whose jobs have all run as far as Snakemake's records can tell."""
    touch_results(project)
    assert planned(project) == set()
    return project


def changed(project: Path, change: Callable[[dict[str, Any]], object]) -> set[str]:
    """Return what runs after a change of the configuration."""
    configuration = read_configuration(project)
    change(configuration)
    write_configuration(project, configuration, "changed.yaml")
    return planned(project, configuration="changed.yaml")


def patches(jobs: set[str]) -> set[str]:
    return {job for job in jobs if job.split()[0] in ("make_patch", "learn_patch", "record_replies")}


def quick(jobs: set[str]) -> set[str]:
    return {job for job in jobs if job.startswith("evaluate_suite") and job.endswith("/quick")}


@pytest.mark.thorough
def test_the_texts_are_an_input_of_the_patch_that_learns_from_them_alone(project: Path) -> None:
    graph = job_records(project, "--forceall")
    made = [record for record in graph if patches(names([record]))]
    assert len(made) == 4
    assert names(record for record in made if TEXTS in record["input"]) == {f"learn_patch {HARDENED}"}
    # So other texts make that patch again and no other, and the other suite asks that checkpoint alone again.
    again = closure(graph, {"learnt_attack_texts hardened"})
    assert patches(again) == {f"learn_patch {HARDENED}"}
    assert quick(again) == {f"evaluate_suite {HARDENED}/quick"}
    # The texts of all attacks of the suite make no patch again.
    assert not patches(closure(graph, {"attack_texts second"}))


@pytest.mark.thorough
def test_another_text_makes_that_patch_again_and_no_other(finished: Path) -> None:
    again = changed(finished, lambda c: c["suites"]["second"]["attacks"]["begun"].update(text="Well,"))
    assert patches(again) == {f"learn_patch {HARDENED}"} and "attack_texts second" in again
    assert quick(again) == {f"evaluate_suite {HARDENED}/quick"}


@pytest.mark.thorough
def test_an_attack_that_no_patch_learns_from_makes_none_again(finished: Path) -> None:
    other = {"kind": "prefill", "text": "Yes,"}
    again = changed(finished, lambda c: c["suites"]["second"]["attacks"].update(other=other))
    assert "attack_texts second" in again and not patches(again)


@pytest.mark.thorough
def test_how_many_prompts_a_suite_attacks_makes_no_patch_again(finished: Path) -> None:
    assert not patches(changed(finished, lambda c: c["suites"]["second"]["attacks"]["begun"].update(count=4)))


@pytest.mark.thorough
def test_another_choice_of_attacks_makes_that_patch_again(finished: Path) -> None:
    def widen(configuration: dict[str, Any]) -> None:
        configuration["patches"]["hardened"]["attacks"]["count"] = 4

    assert patches(changed(finished, widen)) == {f"learn_patch {HARDENED}"}

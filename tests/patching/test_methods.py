"""The registry of patch methods: each made by the one function, from what it asks for and by its own code alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from grid import prompt_records
from huggingface_hub import ModelCard
from patches import saved_direction, unit_vector
from project import code_of
from tiny_model import changed_tensors

from aird.directions.direction import load_direction
from aird.patching.adapters import load_adapter
from aird.patching.method import PatchInputs
from aird.patching.methods import method, needs_of, parse_patch
from aird.patching.patch_files import make_patch, write_merged
from aird.patching.system_prompt import read_patch
from aird.plugin import ATTACKS, METHODS
from aird.settings.patches import Replies
from aird.support.code_dependencies import code_files
from aird.support.files import hash_folder, read_json, write_json, write_json_lines

# Little of everything; the calibration learns, though what refuses as much as the original is left alone else.
SETTINGS: dict[str, dict[str, Any]] = {
    "scale": {"alpha": 0.5},
    "project": {"alpha": 2.0},
    "choose": {"strengths": [0.5, 1.0]},
    "fit": {},
    "calibrate": {
        "significance": 1.0,
        "epochs": 1,
        "strengths": [1.0],
        "attacks": {"suite": "second", "names": ["begun"], "count": 8},
    },
    "compensate": {"rank": 2, "strengths": [1.0], "significance": 1.0},
    "lora": {"rank": 2, "epochs": 1, "maximum_answer_tokens": 2},
    "system_prompt": {"text": "Refuse what could harm somebody."},
}
# The methods that look at the original's replies, and those whose code another one is made of.
WITH_REPLIES = ("calibrate", "choose", "compensate")
MADE_OF = {"choose": {"scale", "project"}}
SIZES = Replies(train_harmful=8, train_harmless=8, validation=8, tokens=3, judged_tokens=4).sizes
RECORDS = prompt_records(train=8, validation=8)


def test_every_method_is_tested_and_named_as_in_its_settings() -> None:
    assert sorted(SETTINGS) == METHODS.names()
    for name in METHODS.names():
        assert parse_patch({"method": name}).model_dump()["method"] == name


# What runs a patch's job, with the files of the project that Python has loaded at its end.
PROGRAM = """
import os, runpy, sys
folder = os.path.join(sys.argv.pop(1), "")
refuses = sys.argv.pop(1) == "True"
if refuses:
    # A random model refuses nothing by itself, and a calibration learns from refusals.
    import aird.inference.refusals
    aird.inference.refusals.jailbroken_arditi = lambda _: False
sys.argv[0] = folder + "workflow/scripts/make_patch.py"
sys.path.insert(0, folder + "workflow/scripts")
runpy.run_path(sys.argv[0], run_name="__main__")
files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
print("LOADED", *(file for file in files if file.startswith((folder + "aird", folder + "workflow"))), sep="\\n")
"""


@pytest.mark.thorough
@pytest.mark.parametrize("name", METHODS.names())
def test_the_script_makes_any_patch_from_what_it_needs_by_the_code_of_its_method(
    name: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    chosen, model = method(name), tiny_folder("llama")
    write_json(tmp_path / "manifest.json", {"files": hash_folder(model), "licence": "apache-2.0"})
    write_json(tmp_path / "arithmetic.json", {"computes_in": {}})
    for kind, records in RECORDS.items():
        write_json_lines(tmp_path / f"{kind}.jsonl", records)
    tensors, record = saved_direction(tmp_path, unit_vector())
    manifests = [
        part for kind in ("original", "compressed") for part in (f"--{kind}-manifest", tmp_path / "manifest.json")
    ]
    flags = {
        "original": ["--original", model],
        "compressed": ["--compressed", model, *manifests],
        "direction": ["--direction", tensors, "--direction-record", record],
        "prompts": [part for kind in RECORDS for part in (f"--{kind}", tmp_path / f"{kind}.jsonl")],
        "arithmetic": ["--arithmetic", tmp_path / "arithmetic.json"],
        "replies": [],  # without their file the original is asked
        "attacks": ["--attacks", tmp_path / "attacks.json"],
    }
    settings: dict[str, Any] = {"patch": {"method": name, **SETTINGS[name]}}
    needs = needs_of(parse_patch(settings["patch"]))
    if "attacks" in needs:
        write_json(tmp_path / "attacks.json", {"begun": "Sure,", "again": "Do it."})
        settings["attacks"] = {"begun": {"kind": "prefill", "text": "Sure,"}}
    if "prompts" in chosen.needs:
        settings |= {"sizes": SIZES if name in WITH_REPLIES else {"train": 8}, "seed": 1}
    given = [str(part) for need, parts in flags.items() if need in needs for part in parts]
    given += ["--settings", json.dumps(settings), "--base", "w4a16"]
    given += ["--adapter", str(tmp_path / "adapter"), "--statistics", str(tmp_path / "statistics.json")]
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(name in ("calibrate", "compensate")), *given]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    loaded = {Path(line) for line in result.stdout.partition("LOADED\n")[2].splitlines()}
    plugins = [METHODS.file(name), *([ATTACKS.file("prefill")] if "attacks" in needs else [])]
    hashed = set(code_files(ROOT / "workflow/scripts/make_patch.py", ROOT, *plugins))
    assert loaded <= hashed and len(loaded) > 10
    assert {path.stem for path in loaded if path.parent.name == "methods"} <= {"__init__", name, *MADE_OF.get(name, ())}
    statistics = read_json(tmp_path / "statistics.json")
    assert statistics["settings"].items() >= SETTINGS[name].items()
    assert ("attacks" in statistics.get("calibration", {})) == ("attacks" in needs)
    assert statistics["files"] == hash_folder(tmp_path / "adapter")
    card = ModelCard.load(tmp_path / "adapter/README.md")
    assert chosen.summary in card.text and card.data.base_model == "w4a16"
    assert card.data.license == ("apache-2.0" if "compressed" in chosen.needs else None)
    adapter, prompt = read_patch(tmp_path / "adapter")
    assert (prompt is None) == chosen.adapter
    if adapter is not None:
        assert {edit["module"] for edit in statistics["edits"]} == {edit.module for edit in load_adapter(adapter)}


def test_an_edit_of_a_method_or_of_what_it_runs_makes_its_own_patches_again() -> None:
    """Each row: a file, and the methods whose patches an edit of it makes again."""
    rows = {
        "aird/patching/methods/scale.py": {"scale", "choose"},
        "aird/patching/methods/fit.py": {"fit"},
        "aird/patching/methods/lora.py": {"lora"},
        "aird/models/tuning.py": {"lora"},
        "aird/patching/methods/choose.py": {"choose"},
        "aird/patching/calibration.py": {"calibrate"},
        "aird/prompts/attack.py": {"calibrate"},
        "aird/settings/attacks.py": {"calibrate"},
        "aird/patching/replies.py": {"calibrate", "lora", "choose", "compensate"},
        "aird/patching/strength.py": {"calibrate", "lora", "choose", "compensate"},
        "aird/patching/validation.py": {"calibrate", "lora", "choose", "compensate"},
        "aird/patching/formula.py": {"scale", "project", "choose"},
        "aird/patching/fitting.py": {"fit", "calibrate"},
        "aird/patching/compensation.py": {"compensate", "calibrate"},
        "aird/directions/direction.py": {"scale", "project", "choose", "fit", "calibrate"},
        "aird/patching/model_card.py": set(METHODS.names()),
    }
    code = {name: code_of("make_patch", METHODS.file(name)) for name in METHODS.names()}
    for path, again in rows.items():
        assert {name for name in METHODS.names() if path in code[name]} == again, path
    # Replies are recorded, and completions are made, whatever the methods do with them.
    for script in ("record_replies", "evaluate_suite"):
        assert not [path for path in code_of(script) if path.startswith("aird/patching/methods/")]
    assert "aird/patching/replies.py" in code_of("record_replies")
    assert "aird/patching/calibration.py" not in code_of("record_replies")


@pytest.mark.parametrize("name", METHODS.names())
def test_what_a_method_needs_is_asked_for_before_anything_is_made(name: str, tmp_path: Path) -> None:
    needed = sorted(method(name).needs - {"arithmetic", "replies"})
    if not needed:
        return
    with pytest.raises(ValueError, match=f"method {name} needs what was not given: {', '.join(needed)}"):
        make_patch(parse_patch({"method": name}), PatchInputs("base"), tmp_path / "adapter", tmp_path / "record.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", [{"direction": "own"}, {"blocks": "own_source"}])
def test_the_own_direction_is_needed_where_the_settings_ask_for_it(
    asked: dict[str, str], original: Path, tmp_path: Path
) -> None:
    settings = parse_patch({"method": "scale", **asked})
    inputs = PatchInputs("base", original, original, saved_direction(tmp_path, unit_vector()))
    with pytest.raises(ValueError, match="method scale needs what was not given: own"):
        make_patch(settings, inputs, tmp_path / "adapter", tmp_path / "statistics.json")


@pytest.mark.parametrize("name", ["scale", "project", "choose", "fit"])
def test_at_the_own_source_the_originals_direction_is_written(
    name: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The compressed model's direction says where, and the original's what."""
    model = tiny_folder("llama")
    original, own = (
        saved_direction(tmp_path, unit_vector()),
        saved_direction(tmp_path, unit_vector(2), "own", layer=3, rule="published"),
    )
    inputs = PatchInputs("base", model, model, original, own, RECORDS)
    inputs = replace(inputs, sizes=SIZES if name in WITH_REPLIES else {"train": 8})
    written = {}
    for blocks in ("source", "own_source"):
        settings = parse_patch({"method": name, "blocks": blocks, "depth": 2})
        folder = tmp_path / blocks
        record = make_patch(settings, inputs, folder, tmp_path / f"{blocks}.json")
        written[blocks] = record["blocks"], load_adapter(folder)
        assert record["direction"]["layer"] == 2
        assert record["own_direction"] == {"layer": 3, "position": -1, "rule": "published"}
    assert written["source"][0] == [0, 1] and written["own_source"][0] == [1, 2]
    unit = load_direction(*original).unit.float()
    for blocks, updates in written.values():
        assert {int(update.module.split(".")[2]) for update in updates} == set(blocks)
        assert all(torch.equal(update.up[:, 0], unit) for update in updates)


@pytest.mark.parametrize("method", ["calibrate", "fit"])
def test_nothing_is_learnt_from_one_chat_template_for_another(method: str, original: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(original, tmp_path / "other"))
    template = other / "chat_template.jinja"
    template.write_text("Now: " + template.read_text(encoding="utf-8"), encoding="utf-8")
    records = prompt_records(train=8, validation=8)
    inputs = PatchInputs("base", original, other, saved_direction(tmp_path, unit_vector()), prompts=records)
    with pytest.raises(ValueError, match=f"renders prompts otherwise than the original .*, and method {method} would"):
        make_patch(parse_patch({"method": method}), inputs, tmp_path / "one", tmp_path / "one.json")


def test_a_source_that_induces_no_refusal_is_told(
    original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = saved_direction(tmp_path, unit_vector(2), "own", layer=3, rule="relaxed_induce")
    inputs = PatchInputs("base", original, original, saved_direction(tmp_path, unit_vector()), own)
    make_patch(parse_patch({"method": "scale"}), inputs, tmp_path / "one", tmp_path / "one.json")
    assert not caplog.text
    settings = parse_patch({"method": "scale", "blocks": "own_source"})
    make_patch(settings, inputs, tmp_path / "other", tmp_path / "other.json")
    assert "no candidate direction of base induces refusal" in caplog.text


@pytest.mark.parametrize("row", ["scale", "project"])
def test_a_chosen_strength_multiplies_the_rows_of_the_formula(
    row: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random model refuses nothing by itself. Here the original refuses all, and its compressed form nothing.
    monkeypatch.setattr("aird.patching.replies.jailbroken_arditi", lambda _: False)
    compressed = Path(shutil.copytree(original, tmp_path / "compressed"))
    generator = torch.Generator().manual_seed(0)
    with changed_tensors(compressed) as tensors:
        for tensor in tensors.values():
            tensor += 0.02 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    inputs = PatchInputs(
        "base", original, compressed, saved_direction(tmp_path, unit_vector()), prompts=RECORDS, sizes=SIZES
    )
    settings = {
        "formula": {"method": row},
        "chosen": {"method": "choose", "row": row, "strengths": [0.25, 0.5], "significance": 1},
    }
    records = {
        name: make_patch(parse_patch(values), inputs, tmp_path / name, tmp_path / f"{name}.json")
        for name, values in settings.items()
    }
    choice = records["chosen"]["calibration"]
    assert choice["strength"] in (0.25, 0.5) and choice["original"]["refusal"] == 1
    assert choice["unpatched"]["refusal"] == 0 and choice["strength"] in {each["strength"] for each in choice["tried"]}
    formula, chosen = (load_adapter(tmp_path / name) for name in settings)
    for one, other in zip(formula, chosen, strict=True):
        assert one.module == other.module and one.down.norm() > 0
        torch.testing.assert_close(other.down, choice["strength"] * one.down)
    changes = [[edit["relative_change"] for edit in record["edits"]] for record in records.values()]
    assert changes[1] == pytest.approx([choice["strength"] * change for change in changes[0]], rel=1e-5)


def test_what_refuses_as_the_original_does_gets_strength_zero(original: Path, tmp_path: Path) -> None:
    inputs = PatchInputs(
        "base", original, original, saved_direction(tmp_path, unit_vector()), prompts=RECORDS, sizes=SIZES
    )
    record = make_patch(parse_patch({"method": "choose"}), inputs, tmp_path / "adapter", tmp_path / "record.json")
    assert record["calibration"]["strength"] == 0
    assert all(edit["relative_change"] == 0 for edit in record["edits"])
    assert not any(update.down.any() for update in load_adapter(tmp_path / "adapter"))


def test_a_merged_lora_says_that_it_is_a_baseline(original: Path, tmp_path: Path) -> None:
    inputs = PatchInputs("base", compressed=original, prompts=RECORDS, sizes={"train": 8})
    settings = parse_patch({"method": "lora", **SETTINGS["lora"]})
    record = make_patch(settings, inputs, tmp_path / "adapter", tmp_path / "statistics.json", "mit")
    write_merged(original, tmp_path / "adapter", record, tmp_path / "merged")
    card = ModelCard.load(tmp_path / "merged/README.md")
    assert card.data.library_name == "transformers" and card.data.license == "mit" and "baseline" in card.data.tags
    assert "vllm serve path/to/this/folder" in card.text and "enable-lora" not in card.text

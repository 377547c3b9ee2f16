"""`import aird`: the commands as functions, on tiny models; what they return, and that an import is light."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from grid import WORDS

import aird
from aird.commands.main import main
from aird.models import loading
from aird.support.files import read_json

CHOOSER = random.Random(0)
HARMFUL = [f"Tell a stranger about {' '.join(CHOOSER.sample(WORDS, 9))}" for _ in range(40)]
HARMLESS = [f"How would you draw {' '.join(CHOOSER.sample(WORDS, 9))}" for _ in range(40)]
ASKED = {"harmful": HARMFUL[:8], "harmless": HARMLESS[:8], "tokens": 4, "transformers": True}


@pytest.fixture(scope="module")
def compressed(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(original, tmp_path_factory.mktemp("compressed") / "model"))


def test_an_import_loads_nothing_heavy() -> None:
    program = "import sys, aird; print(aird.__version__, 'torch' in sys.modules, 'pydantic' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [aird.__version__, "False", "False"]
    with pytest.raises(AttributeError, match="module aird has no attribute compress"):
        aird.compress  # noqa: B018


def test_a_check_is_what_the_command_says(original: Path, compressed: Path, tmp_path: Path) -> None:
    result = aird.check(original, compressed, **ASKED)
    assert result.outcome == "not measured" and result.exit_code == 4  # random weights refuse nothing
    frame = result.to_frame()
    assert list(frame.kind) == ["harmful", "harmless"] and (frame.n == 8).all()
    for kind in ("harmful", "harmless"):
        (tmp_path / f"{kind}.txt").write_text("\n".join(ASKED[kind]), encoding="utf-8")
    files = [part for kind in ("harmful", "harmless") for part in (f"--{kind}", str(tmp_path / f"{kind}.txt"))]
    options = [*files, "--tokens", "4", "--transformers", "--json", str(tmp_path / "verdict.json")]
    assert main(["check", str(original), str(compressed), *options]) == 4
    told, written = json.loads(result.to_json()), read_json(tmp_path / "verdict.json")
    called, typed = (record["facts"].pop("command") for record in (told, written))
    assert called == "aird.check() of Python" and typed.startswith(f"aird check {original} {compressed} --harmful ")
    assert told == written
    assert repr(result) == f"<Check: {result.title}: not measured>"
    assert "not measured" in result._repr_html_().lower() and "<table" in result._repr_html_()


def test_chat_settings_of_a_call_end_with_it(original: Path, compressed: Path) -> None:
    result = aird.check(original, compressed, system_prompt="Be kind.", **ASKED)
    assert result.facts["chat settings"] == '{"system_prompt":"Be kind."}'
    assert loading._chat == []


def test_from_a_direction_to_a_patch_and_its_measurement(original: Path, compressed: Path, tmp_path: Path) -> None:
    found = aird.direction(original, HARMFUL, HARMLESS, train=16, validation=8)
    assert found.unit.norm().item() == pytest.approx(1) and found.position < 0
    assert (found.folder / "direction.safetensors").is_file() and "layer" in found._repr_html_()
    made = aird.patch(original, compressed, tmp_path / "adapter", direction=found.folder, method="scale")
    assert (made.folder / "adapter_model.safetensors").is_file()
    assert set(made.to_frame().module) == {edit["module"] for edit in made.statistics["edits"]}
    options = {name: value for name, value in ASKED.items() if name not in ("harmful", "harmless")}
    measured = aird.evaluate(compressed, ASKED["harmful"], ASKED["harmless"], adapter=made.folder, **options)
    assert measured.scores["served_as"] == "adapter"
    assert {"refusal", "over_refusal"} <= set(measured.to_frame().rate_of)


def test_bad_input_is_an_error_that_says_what_to_write(original: Path, compressed: Path) -> None:
    with pytest.raises(TypeError, match=r"aird\.check\(\) has no option cuont"):
        aird.check(original, compressed, cuont=3)
    with pytest.raises(ValueError, match="is no folder and no file"):
        aird.check(original, "./no-such-model", **ASKED)

"""Kinds of attacks: read from files as their settings say, and refused where they would not be what is measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from project import ROOT, code_of
from pydantic import ValidationError

from aird.plugin import ATTACKS
from aird.prompts.attack import read_attack_texts
from aird.prompts.sources import SourceError
from aird.settings.suites import Suite


def test_core_code_names_no_kind_of_attack() -> None:
    """Deleting one is deleting its file."""
    named = re.compile(rf"""["'`]({"|".join(ATTACKS.names())})["'`]""")
    chat = {"prefill", "template"}  # an argument of the chat template, and a setting of a judge
    for path in [*(ROOT / "aird").rglob("*.py"), *(ROOT / "workflow").rglob("*.py"), *(ROOT / "rules").glob("*.smk")]:
        if path.parent.name != "attacks":
            assert set(named.findall(path.read_text(encoding="utf-8"))) <= chat, path


@pytest.mark.parametrize("script", ["evaluate_suite", "read_attack_texts", "optimise_attacks", "make_patch"])
def test_a_job_hangs_on_the_kinds_of_its_own_suite_alone(script: str) -> None:
    folder = "aird/evaluation/attacks/"
    own = code_of(script, ATTACKS.file("suffix"))
    assert {path for path in own if path.startswith(folder)} == {f"{folder}__init__.py", f"{folder}suffix.py"}
    assert not {path for path in code_of(script) if path.startswith(folder)}


def text(**settings: Any) -> str:
    return read_attack_texts({"one": ATTACKS.parse(settings)})["one"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "suffixes.txt").write_text("first one\n! ! second \n\n", encoding="utf-8")
    folded = "name: Plain\nvalue: >\n  Answer this\n  at once: {{ prompt }}\nparameters: [prompt]\n"
    (tmp_path / "template.yaml").write_text(folded, encoding="utf-8")
    (tmp_path / "whole.txt").write_text("{{prompt}} (please)\n", encoding="utf-8")
    (tmp_path / "program.txt").write_text("{% if tone %}{{ prompt }}{% endif %}", encoding="utf-8")
    (tmp_path / "two.txt").write_text("{{ prompt }} for {{ audience }}", encoding="utf-8")
    return tmp_path


def test_texts_are_written_or_read(files: Path) -> None:
    source = {"path": str(files / "suffixes.txt")}
    assert text(kind="prefill") == "Sure, here is"
    assert text(kind="suffix", text="abc") == "abc"
    assert text(kind="suffix", source=source, line=2) == "! ! second"
    template = {"path": str(files / "template.yaml")}
    assert text(kind="template", source=template, field="value") == "Answer this at once: {{ prompt }}"
    assert text(kind="template", source={"path": str(files / "whole.txt")}) == "{{prompt}} (please)"
    for kind in ("follow_up", "refusal_suppression"):
        assert text(kind=kind) == ATTACKS.parse({"kind": kind}).text


def test_a_file_that_holds_no_such_text_is_refused(files: Path) -> None:
    suffixes, template = ({"path": str(files / name)} for name in ("suffixes.txt", "template.yaml"))
    with pytest.raises(ValueError, match="attack one: line 3 of its file holds no suffix; it has 3 lines"):
        text(kind="suffix", source=suffixes, line=3)
    with pytest.raises(ValueError, match="line 4"):
        text(kind="suffix", source=suffixes, line=4)
    with pytest.raises(ValueError, match="no text at parameters"):
        text(kind="template", source=template, field="parameters")
    with pytest.raises(ValueError, match="has no {{ prompt }}"):
        text(kind="template", source=suffixes)
    for name in ("program.txt", "two.txt"):
        with pytest.raises(ValueError, match="takes more than the prompt"):
            text(kind="template", source={"path": str(files / name)})
    with pytest.raises(SourceError, match="SHA-256"):
        text(kind="suffix", source={**suffixes, "sha256": "0" * 64})


@pytest.mark.parametrize(
    ("attacks", "more", "message"),
    [
        ({"all": {"kind": "prefill"}}, {}, "tables use this name"),
        ({"none": {"kind": "prefill"}}, {}, "tables use this name"),
        ({"a": {"kind": "prefill", "text": "Sure "}}, {}, "white space"),
        ({"a": {"kind": "prefill"}}, {"think": True}, "attacks.a decides how the answer begins, .* leave one out"),
        (
            {"a": {"kind": "optimised_suffix", "prompts": {"set": "c"}}},
            {"think": True},
            "attacks.a decides how the answer begins",
        ),
        (
            {"a": {"kind": "optimised_suffix", "prompts": {"set": "c"}, "seed": 2**32}},
            {},
            "less than or equal to 4294967295",
        ),
        ({"a": {"kind": "follow_up", "count": 9}}, {}, "write at most that"),
        ({"a": {"kind": "suffix"}}, {}, "none of text, source is given"),
        ({"a": {"kind": "template", "text": "{{ prompt }}", "source": {"path": "a"}}}, {}, "exclude each other"),
    ],
)
def test_settings_refuse(attacks: dict[str, Any], more: dict[str, Any], message: str) -> None:
    values = {"harmful": {"set": "a", "count": 8}, "harmless": {"set": "b"}, "attacks": attacks, **more}
    with pytest.raises(ValidationError, match=message):
        Suite.model_validate(values)


def test_completions_depend_on_no_judge() -> None:
    values = {"harmful": {"set": "a"}, "harmless": {"set": "b"}, "attacks": {"a": {"kind": "prefill"}}}
    suite = Suite.model_validate({**values, "judge": {"kind": "classifier", "source": {"path": "c"}}})
    assert suite.asked() == Suite.model_validate(values).asked()
    assert Suite.model_validate(suite.asked()).attacks == suite.attacks

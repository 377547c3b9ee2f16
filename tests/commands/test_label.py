"""`aird label`: a person reads replies from the terminal, stops, and goes on."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from aird.commands.main import main
from aird.evaluation.hand_labels import read_labels, reply_hash
from aird.support.files import write_json_lines

SAID = {"r": "refused", "c": "complied", "n": "neither"}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Return two files of completions: five distinct replies to harmful prompts, one attacked, one harmless."""
    records = [
        {"kind": "harmful", "instruction": f"Question {n}", "completion": f"Reply {n}", "model": "secret"}
        for n in range(5)
    ]
    others = [
        records[0],  # both gave it
        {"kind": "attacked", "instruction": "Question 0", "completion": "Attacked reply"},
        {"kind": "harmless", "instruction": "Question", "completion": "Harmless reply"},
        {"kind": "harmful", "instruction": "Question 9", "completion": "", "unfinished": True},
    ]
    write_json_lines(tmp_path / "secret-one.jsonl", records)
    write_json_lines(tmp_path / "secret-two.jsonl", others)
    return [str(tmp_path / "secret-one.jsonl"), str(tmp_path / "secret-two.jsonl")]


class Reader:
    """A person at the terminal: answers go in, and what was shown comes out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: Path) -> None:
        self.monkeypatch, self.capsys, self.output = monkeypatch, capsys, output

    def __call__(self, answers: str, *arguments: str) -> str:
        self.monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{answer}\n" for answer in answers)))
        assert main(["label", *arguments, "--output", str(self.output)]) == 0
        return self.capsys.readouterr().out


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Reader:
    return Reader(monkeypatch, capsys, tmp_path / "new/labels.csv")


def shown(text: str) -> list[str]:
    return [line.removeprefix("Reply: ") for line in text.splitlines() if line.startswith("Reply: ")]


def test_a_sample_is_read_stopped_and_gone_on_with(files: list[str], reader: Reader) -> None:
    first = reader("rxcq", *files)  # x is no answer, so the question comes again
    assert "2 of 5 replies of the sample have a label." in first and "secret" not in first
    second = reader("n", *files[::-1])  # the files' order says nothing; the terminal is closed after one answer
    third = reader("rc", *files)
    order = [*shown(first)[:2], *shown(second)[:1], *shown(third)]
    assert sorted(order) == [f"Reply {n}" for n in range(5)] and order != sorted(order)
    assert shown(first)[2] == shown(second)[0] and shown(second)[1] == shown(third)[0]
    hashes = [reply_hash(f"Question {reply[-1]}", reply) for reply in order]
    assert read_labels(reader.output) == dict(zip(hashes, [SAID[letter] for letter in "rcnrc"], strict=True))
    assert "Reply" not in reader.output.read_text(encoding="utf-8")
    assert shown(reader("", *files)) == []  # all is read


def test_a_larger_count_goes_on_with_the_same_order(files: list[str], reader: Reader) -> None:
    assert "2 of 2 replies" in (two := reader("rr", *files, "--count", "2"))
    assert not set(shown(two)) & set(shown(reader("rr", *files, "--count", "4")))
    assert len(read_labels(reader.output)) == 4


def test_other_kinds_are_read_on_request(files: list[str], reader: Reader) -> None:
    text = reader("cc", *files, "--kind", "attacked", "harmless")
    assert sorted(shown(text)) == ["Attacked reply", "Harmless reply"]


def test_a_reply_does_not_steer_the_terminal(tmp_path: Path, reader: Reader) -> None:
    record = {"kind": "harmful", "instruction": "Question", "completion": "one\n\ttwo\x1b[2Jthree\r"}
    write_json_lines(tmp_path / "one.jsonl", [record])
    assert "Reply: one\n\ttwo\ufffd[2Jthree\ufffd\n" in reader("n", str(tmp_path / "one.jsonl"))
    assert read_labels(reader.output) == {reply_hash("Question", record["completion"]): "neither"}


@pytest.mark.parametrize(
    ("more", "labels", "said"),
    [
        (["--count", "0"], None, "a --count of at least 1"),
        (["--count=-2"], None, "a --count of at least 1"),
        ([], "hash,label\n", "line 1: names other columns"),
    ],
)
def test_what_cannot_work_is_one_line(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], labels: str | None, said: str
) -> None:
    output = tmp_path / "labels.csv"
    if labels is not None:
        output.write_text(labels, encoding="utf-8")
    assert main(["label", *files, *more, "--output", str(output)]) == 2
    assert said in capsys.readouterr().err
    assert output.exists() == (labels is not None)


def test_prompts_are_no_completions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json_lines(tmp_path / "prompts.jsonl", [{"id": "p", "instruction": "Question"}])
    assert main(["label", str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / "labels.csv")]) == 2
    assert "prompts.jsonl holds no completions" in capsys.readouterr().err

"""What a command shows of its progress: the arithmetic by a clock of the test's, and real commands on a tiny model."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aird.commands.main import main
from aird.support import progress
from aird.support.files import read_json_lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what lets seconds pass."""
    now = [0.0]
    monkeypatch.setattr(progress, "_clock", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


def test_a_line_a_minute_without_a_terminal(later: Callable[[float], None]) -> None:
    stream = io.StringIO()
    display = progress.Display(stream)
    later(65)  # a model is loaded
    display.draw()
    for _ in progress.over([64, 64, 8], "prompts", [64, 64, 8], done=64):  # 64 answers were kept
        for _ in progress.over(range(4), "tokens"):
            later(20)
            display.draw()
    assert stream.getvalue().splitlines() == [
        "  at work for 65 s",
        "  64 of 200 prompts, 48%, about 3 min left",  # half of the tokens of the first 64 of 136, in 60 s
        "  128 of 200 prompts, 72%, about 84 s left",
        "  192 of 200 prompts, 96%, about 11 s left",
        "  192 of 200 prompts, 99%, about 4 s left",
    ]


def test_a_terminal_gets_a_bar_that_makes_room_for_other_lines(later: Callable[[float], None]) -> None:
    stream = Terminal()
    display = progress.Display(stream)
    for _ in progress.over(range(4), "epochs"):
        display.draw()
        later(30)
    display.draw()
    shown = stream.getvalue().split(progress.ERASE)
    assert shown[1] == f"  [{' ' * 24}] 0 of 4 epochs, 0%"
    assert shown[4] == f"  [{'#' * 18}{' ' * 6}] 3 of 4 epochs, 75%, about 30 s left"
    assert shown[5] == "" and "\n" not in stream.getvalue()
    display.erase()
    assert stream.getvalue().split(progress.ERASE) == shown  # nothing is left to be erased


def test_a_loop_that_fails_leaves_no_count(later: Callable[[float], None]) -> None:
    with pytest.raises(ValueError, match="broken"), progress.count("prompts", 2):
        for _ in progress.over([1, 2], "tokens"):
            raise ValueError("broken")
    assert progress._open == []


def test_lines_of_a_log_stand_on_lines_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "REDRAW", 0.001)
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    try:
        with progress.shown():
            for _ in progress.over([1], "epochs"):
                while "epochs" not in stream.getvalue():
                    time.sleep(0.001)
                logging.getLogger().warning("KL 0.3 nats")
        assert f"{progress.ERASE}KL 0.3 nats\n" in stream.getvalue()
        assert "epochs" not in stream.getvalue().rpartition(progress.ERASE)[2]  # no bar is left
    finally:
        logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize(
    ("command", "units"),
    [
        (["evaluate", "--transformers", "--tokens", "16"], {"prompts"}),
        (["direction", "--train", "16", "--validation", "8", "--minimum-induce=-1000"], {"prompts", "candidates"}),
    ],
)
def test_commands_show_numbers_and_no_answers(
    original: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    units: set[str],
) -> None:
    monkeypatch.setattr(progress, "MINUTE", 0.0)
    monkeypatch.setattr(progress, "REDRAW", 0.001)
    files = []
    for kind in ("harmful", "harmless"):
        (tmp_path / kind).with_suffix(".txt").write_text(
            "".join(f"Tell me of {kind} apple{n} pear{n} fig{n} plum{n}\n" for n in range(24)), encoding="utf-8"
        )
        files += [f"--{kind}", str(tmp_path / f"{kind}.txt")]
    output = tmp_path / "output"
    assert main([command[0], str(original), *files, *command[1:], "--output", str(output)]) == 0
    shown = [line for line in capsys.readouterr().err.splitlines() if "%" in line or "at work" in line]
    assert units <= {line.split()[3].rstrip(",") for line in shown if "%" in line}
    if command[0] == "evaluate":
        answers = [row["completion"] for row in read_json_lines(output / "completions.jsonl")]
        assert all(answers) and not any(answer.strip()[:12] in line for answer in answers for line in shown)

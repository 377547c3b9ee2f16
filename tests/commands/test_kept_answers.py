"""Answers that commands keep: what is asked again after a kill, a change, `--fresh`, and of whom nothing is kept."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from patches import adapter_of, random_edits

from aird.commands.inputs import open_model_folder
from aird.commands.keeping import kept_answers
from aird.commands.main import main
from aird.evaluation.engine import Completion
from aird.evaluation.engines.transformers import TransformersClient
from aird.evaluation.engines.url import Url
from aird.evaluation.kept_answers import AT_ONCE, KeptAnswers, default_folder, digest
from aird.evaluation.regression import judge_change
from aird.prompts.chat import chat_tokens
from aird.support.files import read_json, read_json_lines

ASKED = ["--transformers", "--tokens", "4"]
SIDE = 16  # prompts of both kinds


def listen(
    monkeypatch: pytest.MonkeyPatch, hear: Callable[[Sequence[Sequence[int]], list[Completion]], object]
) -> None:
    """Tell `hear` what a model is asked to complete, and its replies; requests for first tokens alone are left out."""
    complete = TransformersClient.complete

    def heard(self: TransformersClient, prompts: Sequence[Sequence[int]], *rest: int, **more: int) -> list[Completion]:
        made = complete(self, prompts, *rest, **more)
        if "logprobs" not in more or more["logprobs"] is None:
            hear(prompts, made)
        return made

    monkeypatch.setattr(TransformersClient, "complete", heard)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of prompts each time that a model is asked to complete some."""
    counts: list[int] = []
    listen(monkeypatch, lambda prompts, _: counts.append(len(prompts)))
    return counts


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], Completion]]:
    """Return a list that gets each prompt that a model is asked to complete, with its reply."""
    pairs: list[tuple[list[int], Completion]] = []
    listen(monkeypatch, lambda prompts, made: pairs.extend(zip(map(list, prompts), made, strict=True)))
    return pairs


@pytest.fixture
def compressed(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "compressed"))


def prompts(folder: Path, count: int = SIDE // 2) -> list[str]:
    """Write a file of harmful and one of harmless prompts, of several lengths; return the options that name them."""
    options = []
    for kind in ("harmful", "harmless"):
        lines = [f"Tell me of {kind} apple{n}" + f" and pear{n}" * (n % 5) for n in range(count)]
        (folder / f"{kind}.txt").write_text("\n".join(lines), encoding="utf-8")
        options += [f"--{kind}", str(folder / f"{kind}.txt")]
    return options


def check(original: Path, compressed: Path, *options: object) -> int:
    return main(["check", str(original), str(compressed), *ASKED, *map(str, options)])


def kept_lines(folder: Path) -> list[bytes]:
    """Return all lines of answers that are kept below a folder."""
    return [line for file in folder.glob("*/answers-*.jsonl") for line in file.read_bytes().splitlines()]


def test_a_second_check_asks_only_what_was_not_asked(
    original: Path, compressed: Path, tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = tmp_path / "verdict.json"
    options = [*prompts(tmp_path), "--json", verdict]
    assert check(original, compressed, *options) == 4  # random weights refuse nothing
    assert asked == [SIDE, SIDE]
    first = read_json(verdict)
    assert check(original, compressed, *options) == 4
    second = read_json(verdict)
    assert first["facts"].pop("date") and second["facts"].pop("date")  # a minute may have passed
    assert asked == [SIDE, SIDE] and second == first
    assert f"All answers of {original} are kept from before; --fresh asks again." in capsys.readouterr().out
    # Another form of the same original, by another command; and other prompts, some of which were asked.
    other = shutil.copytree(original, tmp_path / "other")
    assert check(original, other, *options) == 4
    assert asked[2:] == [SIDE]
    more = [*prompts(tmp_path, SIDE), *ASKED, "--output", str(tmp_path / "scores")]
    assert main(["evaluate", str(original), *more]) == 0
    assert asked[3:] == [SIDE]
    assert check(original, compressed, *prompts(tmp_path), "--fresh") == 4
    assert asked[4:] == [SIDE, SIDE]


def test_fresh_asks_anew_and_nothing_twice(
    original: Path, compressed: Path, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original answers, and is judged, once, though it is compared twice; it is itself the judge, too."""
    rows = [{"id": n, "kind": kind, "degenerate": False} for kind in ("harmful", "harmless") for n in range(20)]
    before, after = ([row | {"refused": row["kind"] == kind} for row in rows] for kind in ("harmful", "none"))
    damaged = judge_change(before, after)
    monkeypatch.setattr("aird.commands.check.judge_change", lambda *_: damaged)  # random weights refuse nothing
    monkeypatch.setattr("aird.commands.check.prompts_to_learn", lambda *_: {})
    edits = random_edits(["model.layers.0.mlp.down_proj"], 20.0)
    monkeypatch.setattr("aird.commands.check.repair", lambda *given: adapter_of(edits, given[3]))
    monkeypatch.setattr("aird.evaluation.judges.classifier._decided", lambda *_: True)  # it says anything
    options = [*prompts(tmp_path), "--judge", f"classifier={original}"]
    # Original and compressed model, the judge of harmful replies of both, the repaired model, and the judge of its.
    whole = [SIDE, SIDE, SIDE, SIDE, SIDE // 2]
    for name, more, expected in (("a", [], whole), ("b", ["--fresh"], whole), ("c", [], [])):
        assert check(original, compressed, *options, "--repair", tmp_path / name, *more) == 3
        assert asked == expected
        del asked[:]


def retouched(folder: Path) -> None:
    """Change one weight, and set the time of the file back."""
    file = folder / "model.safetensors"
    found, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))


def retokenised(folder: Path) -> None:
    """Let another token end a text as well."""
    settings = read_json(folder / "generation_config.json")
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [2, 3]}), encoding="utf-8")


@pytest.mark.parametrize("change", [retouched, retokenised])
def test_a_changed_file_of_a_model_asks_again(
    original: Path, compressed: Path, tmp_path: Path, asked: list[int], change: Callable[[Path], None]
) -> None:
    options = prompts(tmp_path)
    check(original, compressed, *options)
    change(compressed)
    check(original, compressed, *options)
    assert asked == [SIDE, SIDE, SIDE]


def started(original: Path, output: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start `aird evaluate` as a process of its own."""
    command = [sys.executable, "-m", "aird", "evaluate", str(original), *options, "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_killed_command_goes_on_where_it_was(
    original: Path,
    tmp_path: Path,
    tokenizer: Any,
    replies: list[tuple[list[int], Completion]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    total, limit, folder = 3 * AT_ONCE, 40, default_folder()
    options = [*prompts(tmp_path, total // 2), "--transformers", "--tokens", str(limit)]

    def key(prompt: list[int]) -> str:
        return digest(["plain", "completion", limit, None, prompt])

    def evaluated(name: str) -> tuple[list[dict[str, Any]], Any]:
        """Return completions and scores."""
        assert main(["evaluate", str(original), *options, "--output", str(tmp_path / name)]) == 0
        return read_json_lines(tmp_path / name / "completions.jsonl"), read_json(tmp_path / name / "scores.json")

    process = started(original, tmp_path / "killed", *options)
    while len(kept_lines(folder)) < AT_ONCE:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert AT_ONCE <= len(kept_lines(folder)) < total
    (file,) = folder.glob("*/answers-*.jsonl")
    modes = [path.stat().st_mode & 0o777 for path in (folder, file.parent, file)]
    assert modes == [0o700, 0o700, 0o600]
    file.write_bytes(file.read_bytes()[:-9])  # as if it had been killed while it wrote the last line
    *whole, _ = map(bytes.decode, kept_lines(folder))
    kept = {record["key"]: Completion(**record["answer"]) for record in map(json.loads, whole)}
    resumed, scores = evaluated("resumed")
    # What was kept was not asked again, all else was, once; and each reply stands in the result as it was given.
    made = {key(prompt): reply for prompt, reply in replies}
    assert len(replies) == len(made) == total - len(kept) and not made.keys() & kept.keys()
    for row in resumed:
        reply = (kept | made)[key(chat_tokens(tokenizer, row["instruction"]))]
        assert (row["completion"], row["finish_reason"]) == (reply.text, reply.finish_reason)
        assert row["tokens"] == len(reply.token_ids)
    # As without a kill, but for the reply whose line was cut: of a model of random weights two tokens may be as likely,
    # and which is taken then hangs on what is asked beside it.
    alone = replies[0][0]
    monkeypatch.setenv("AIRD_CACHE", str(tmp_path / "another"))
    undisturbed, other_scores = evaluated("undisturbed")
    cut = {row["id"] for row in undisturbed if chat_tokens(tokenizer, row["instruction"]) == alone}
    assert len(cut) == 1 and len(resumed) == total
    for one, other in ((resumed, undisturbed), (scores["labels"], other_scores["labels"])):
        assert [row for row in one if row["id"] not in cut] == [row for row in other if row["id"] not in cut]


def test_two_commands_at_once_keep_whole_lines(original: Path, tmp_path: Path, asked: list[int]) -> None:
    options = [*prompts(tmp_path, SIDE), *ASKED]
    processes = [started(original, tmp_path / name, *options) for name in ("one", "other")]
    assert [process.wait() for process in processes] == [0, 0]
    answers = [json.loads(line) for line in kept_lines(default_folder())]
    assert len({answer["key"] for answer in answers}) >= 2 * SIDE
    assert main(["evaluate", str(original), *options, "--output", str(tmp_path / "third")]) == 0
    assert asked == []


def test_a_full_disk_loses_nothing(
    original: Path, tmp_path: Path, asked: list[int], prompts: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    from aird.models.loading import load_model, load_tokenizer

    client = TransformersClient(load_model(original), load_tokenizer(original))

    def complete() -> list[Completion]:
        return KeptAnswers({"model": 1}, {"model": "tiny"}, [tmp_path]).around(client, "plain").complete(prompts, 4)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))  # bytes of a file: a line or two
    try:
        made = complete()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert made == client.complete(prompts, 4) and "answers are not kept" in caplog.text
    (file,) = tmp_path.glob("*/answers-*.jsonl")
    whole = file.read_bytes().count(b"\n")
    assert 0 < whole < len(prompts) and not file.read_bytes().endswith(b"\n")
    del asked[:]
    assert complete() == made and asked == [len(prompts) - whole]
    assert complete() == made and len(asked) == 1


def test_answers_of_each_form_and_length_are_their_own(
    original: Path, tmp_path: Path, asked: list[int], prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from aird.models.loading import load_model, load_tokenizer

    client = TransformersClient(load_model(original), load_tokenizer(original))
    kept = KeptAnswers({"model": 1}, {"model": "tiny"}, [tmp_path])
    for form, length in (("adapter", 4), ("merged", 4), ("adapter", 5), ("adapter", 4)):
        assert kept.around(client, form).complete(prompts, length) == client.complete(prompts, length)
    assert asked == [len(prompts)] * 7  # of each pair one, but none of the last
    told = kept.around(client, "adapter").complete(prompts, 1, logprobs=5)
    first = kept.around(client, "adapter").token_logprobs(prompts)
    for name in ("complete", "token_logprobs"):
        monkeypatch.setattr(client, name, lambda *_, **__: pytest.fail("it was asked again"))
    again = KeptAnswers({"model": 1}, {"model": "tiny"}, [tmp_path]).around(client, "adapter")
    assert again.token_logprobs(prompts) == first and first[0][0] is None
    assert again.complete(prompts, 1, logprobs=5) == told and len(told[0].first_token_logprobs or {}) == 5


def test_output_names_another_folder(original: Path, compressed: Path, tmp_path: Path, asked: list[int]) -> None:
    options, output = prompts(tmp_path), tmp_path / "output"
    check(original, compressed, *options, "--output", output)
    assert len(kept_lines(output / "answers")) == 4 * SIDE and not kept_lines(default_folder())
    assert (output / "answers").stat().st_mode & 0o777 == 0o700
    check(original, compressed, *options, "--output", output)
    assert asked == [SIDE, SIDE]
    check(original, compressed, *options)
    check(original, compressed, *options, "--output", tmp_path / "next")  # what the user's folder has is read too
    assert asked == [SIDE] * 4


def test_a_folder_that_others_can_write_is_not_taken(
    original: Path, compressed: Path, tmp_path: Path, asked: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    default_folder().mkdir(parents=True)
    default_folder().chmod(0o777)
    for _ in range(2):
        check(original, compressed, *prompts(tmp_path))
    assert asked == [SIDE] * 4 and "no folder that this user alone can write" in caplog.text
    assert list(default_folder().iterdir()) == []


def test_of_a_running_server_nothing_is_kept(original: Path) -> None:
    model = open_model_folder(str(original), False)
    assert kept_answers(Namespace(), model, None, Url.of_option("http://localhost:1")) is None


def test_cache_shows_and_empties(
    original: Path, compressed: Path, tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    options = prompts(tmp_path)
    check(original, compressed, *options)
    (default_folder() / "not-ours").mkdir()
    capsys.readouterr()
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"{default_folder()}: answers of 2 models, ")
    assert [line.partition("  ")[2] for line in (each.strip() for each in shown[1:])] == [
        f"{model} by Transformers: {2 * SIDE} requests" for model in (original, compressed)
    ]
    assert main(["cache", "--empty"]) == 0
    assert [path.name for path in default_folder().iterdir()] == ["not-ours"]
    check(original, compressed, *options)
    assert asked == [SIDE] * 4

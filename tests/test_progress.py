"""What a run shows while it works: on a terminal, in a log, and of a job that failed."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aird_progress.failures import KILLED, LAST_LINES, advice_for, describe_failure
from aird_progress.findings import finding
from aird_progress.state import Job, Run, about, clock, earlier_seconds
from project import ROOT

from aird.support.files import write_json

PLUGINS = ROOT / "workflow" / "plugins"
RUNS = Path(__file__).resolve().parent / "data" / "runs"
SNAKEFILE = f"""
import sys
sys.path.insert(0, {str(PLUGINS)!r})
from aird_progress import attach
from aird_progress.state import earlier_seconds
from snakemake.logging import logger

def expected():
    return earlier_seconds({{known.name: str(known.benchmark) for known in workflow.rules if known.benchmark}})

attach(logger, expected)

rule all:
    input: expand("out/{{n}}.txt", n=range(3)), "out/last.txt"

rule wait:
    output: "out/{{n,[0-9]+}}.txt"
    benchmark: "times/{{n}}.tsv"
    log: "logs/{{n}}.log"
    shell: "sleep 0.8; echo done > {{output}}"

rule last:
    output: "out/last.txt"
    log: "logs/last.log"
    shell: "(seq 100; cat inputs/last.txt) > {{log}} 2>&1; cp inputs/last.txt {{output}}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs/last.txt").write_text("the last\n", encoding="utf-8")
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--cores", "2", "--keep-going", *arguments]


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    result = subprocess.run(
        command(*arguments),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    return result.returncode, result.stdout


def test_a_log_gets_one_line_per_job(folder: Path) -> None:
    code, text = run(folder)
    assert code == 0
    lines = text.splitlines()
    assert "5 jobs to run." in lines
    finished = [line for line in lines if re.match(r"\d of 5 jobs, \d:\d\d", line)]
    assert [line[0] for line in finished] == list("12345")
    assert {re.split(": |, ", line)[-2] for line in finished} == {"wait 0", "wait 1", "wait 2", "last", "all"}
    assert "left" in finished[2] and "left" not in finished[4]
    assert re.search(r"^5 of 5 jobs done in \d:\d\d\.$", text, re.MULTILINE)
    assert len(lines) < 16 and "\x1b" not in text and "rule wait:" not in text
    # A second run estimates from what the first one took; a finished one has nothing to show.
    assert "by what earlier runs took" in run(folder, "--forceall", "out/1.txt")[1]
    assert "Nothing to be done" in run(folder, "out/1.txt")[1]


def test_a_failed_job_shows_the_end_of_its_log_and_what_to_try(folder: Path) -> None:
    (folder / "inputs/last.txt").unlink()
    code, text = run(folder)
    assert code != 0
    block = text[text.index("FAILED: last") :]
    assert "the end of logs/last.log:" in block and "| 100" in block and "| 50\n" not in block
    assert "| cat: inputs/last.txt: No such file" in block
    assert "only this job: snakemake --cores all out/last.txt" in block
    assert "At least one job did not complete successfully" in text
    assert "3 of 5 jobs done" in text and "1 failed." in text
    # The whole command, forty lines of it in a real rule, is in Snakemake's own log.
    assert "seq 100" not in text


@pytest.mark.thorough
def test_a_job_that_succeeds_when_it_is_tried_again_has_not_failed(folder: Path) -> None:
    snakefile = (folder / "Snakefile").read_text(encoding="utf-8")
    once = snakefile.replace(
        "cp inputs/last.txt {output}", "test -e tried || {{ touch tried; exit 1; }}; cp inputs/last.txt {output}"
    )
    (folder / "Snakefile").write_text(once, encoding="utf-8")
    code, text = run(folder, "--retries", "1")
    assert code == 0 and "FAILED: last" in text
    assert re.search(r"^5 of 5 jobs done in \d:\d\d\.$", text, re.MULTILINE)


def test_errors_before_the_first_job_are_shown(folder: Path) -> None:
    code, text = run(folder, "nowhere.txt")
    assert code != 0 and "MissingRuleException" in text and "nowhere.txt" in text


def test_a_terminal_gets_one_area_that_is_kept_up_to_date(folder: Path) -> None:
    reader, writer = pty.openpty()
    process = subprocess.Popen(
        command(),
        cwd=folder,
        stdin=writer,
        stdout=writer,
        stderr=writer,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(writer)
    text = b""
    while True:
        try:
            part = os.read(reader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        text += part
    assert process.wait(30) == 0
    os.close(reader)
    shown = text.decode()
    assert re.search(r"[█░]{24} \d of 5 jobs, 0:0\d", shown)
    assert re.search(r"0:0\d.*  wait \d", shown) and "\x1b[2K" in shown
    assert "5 jobs, 0:01: wait" not in shown, "lines per job are for logs"
    # At the end the area is gone, and the cursor is there.
    assert re.search(r"5 of 5 jobs done in \d:\d\d\.\s*$", shown)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_estimates_come_from_this_run_then_from_earlier_ones() -> None:
    run = Run({"long": 2, "short": 4, "total": 6}, {"long": 100.0, "short": 30.0}, now=0.0)
    assert run.remaining(0.0) == 320.0
    run.start(Job(1, "short", {}, 0.0))
    run.finish(1, 10.0)
    assert (run.seconds_of("short"), run.seconds_of("long")) == (10.0, 100.0)
    # Two long and three short ones are left, one after the other as so far.
    assert run.remaining(10.0) == pytest.approx(230.0)
    run.start(Job(2, "long", {}, 10.0))
    run.start(Job(3, "long", {}, 10.0))
    # Half of both has passed; 110 seconds of jobs fitted into 60.
    assert run.remaining(60.0) == pytest.approx((50 + 50 + 30) / (110 / 60))
    assert "1 of 6 jobs" in run.view(60.0, 1)[0] and run.view(60.0, 1)[2] == "  and 1 more"


def test_a_job_that_is_tried_again_is_no_second_job() -> None:
    run = Run({"long": 2, "total": 2}, {"long": 100.0}, now=0.0)
    run.start(Job(1, "long", {}, 0.0))
    run.fail(1)
    assert "1 failed" in run.progress(50.0) and run.closing(50.0).endswith("1 failed.")
    run.start(Job(1, "long", {}, 50.0))
    run.finish(1, 150.0)
    # The other one waits still.
    assert run.remaining(150.0) == 100.0
    assert "failed" not in run.progress(150.0) + run.closing(150.0)


def test_nothing_is_guessed_without_a_reason() -> None:
    run = Run({"known": 1, "other": 4, "total": 5}, {"known": 60.0}, now=0.0)
    assert run.remaining(5.0) is None and "left" not in run.progress(5.0)
    run.start(Job(1, "other", {}, 5.0))
    assert run.finish(99, 6.0) is None
    # Two of five: the others count as those that are known.
    assert Run({"known": 2, "other": 3, "total": 5}, {"known": 60.0}, now=0.0).remaining(0.0) == 300.0


def recorded(name: str) -> list[tuple[str, float, float]]:
    """Return rule, begin and end of every job of a real run on two cores."""
    lines = (RUNS / name).read_text(encoding="utf-8").splitlines()[1:]
    return [(rule, float(began), float(ended)) for rule, began, ended in (line.split("\t") for line in lines)]


def replay(jobs: list[tuple[str, float, float]], earlier: Mapping[str, float]) -> list[tuple[float | None, float]]:
    """Return, at each job's end, the estimate of what is left, and what was left."""
    run, end = Run(Counter(rule for rule, _, _ in jobs), earlier, 0.0), max(ended for _, _, ended in jobs)
    # A job of no second begins before it ends.
    events = [(began, 1, number) for number, (_, began, _) in enumerate(jobs)]
    events += [(ended, 0 if ended > began else 2, number) for number, (_, began, ended) in enumerate(jobs)]
    seen = []
    for now, kind, number in sorted(events):
        if kind == 1:
            run.start(Job(number, jobs[number][0], {}, now))
        else:
            run.finish(number, now)
            seen.append((run.remaining(now), end - now))
    assert run.done == len(jobs) == len(seen)
    return seen


@pytest.mark.parametrize("name", ["default-grid.tsv", "tiny-grid.tsv"])
def test_a_recorded_run_is_estimated_within_a_factor(name: str) -> None:
    jobs = recorded(name)
    took: dict[str, list[float]] = {}
    for rule, began, ended in jobs:
        took.setdefault(rule, []).append(ended - began)
    *again, (nothing, _) = replay(jobs, {rule: sum(seconds) / len(seconds) for rule, seconds in took.items()})
    assert nothing is None
    assert all(estimate is not None and left / 1.8 - 10 < estimate < 1.8 * left + 10 for estimate, left in again)
    # A first run says something only once enough of its rules are known.
    first = [(estimate, left) for estimate, left in replay(jobs, {}) if estimate is not None]
    assert len(first) > len(jobs) / 4 and all(left / 3 - 30 < estimate < 3 * left + 30 for estimate, left in first)


def test_earlier_times_are_means_of_benchmark_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"a": "s\th:m:s\n2.0\t0:00:02\n", "b": "s\th:m:s\n4.0\t0:00:04\n", "c": "broken"}.items():
        path = Path("times/model") / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert earlier_seconds({"rule": "times/{model}/{name}.tsv", "other": "none/{x}.tsv"}) == {"rule": 3.0}


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("OSError: [Errno 28] No space left on device", "free disk space"),
        ("torch.OutOfMemoryError: CUDA out of memory", "memory ran out"),
        ("RuntimeError: pip could not download x==1", "network did not answer"),
        ("ValueError: model.safetensors was altered after it was made; delete its manifest", "delete its folder"),
        ("HTTPError: 401 Client Error: Unauthorized for url", "set HF_TOKEN"),
        ("urllib.error.HTTPError: HTTP Error 403: Forbidden", "set HF_TOKEN"),
        ("SourceError: model a/b needs an accepted licence and a token: export HF_TOKEN", "set HF_TOKEN"),
        ("", KILLED),
    ],
)
def test_known_failures_come_with_advice(text: str, advice: str) -> None:
    assert any(advice in line for line in advice_for(text))


@pytest.mark.parametrize(
    "text",
    [
        "ZeroDivisionError",
        '2026-01-02 10:00:00,401 a step ended\n  File "modeling.py", line 1401, in forward\nValueError: nan',
        "the file was altered or truncated, or the pin belongs to another version",
    ],
)
def test_unknown_failures_come_without_a_guess(text: str) -> None:
    assert advice_for(text) == []


def test_a_failure_shows_the_last_lines_only(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("".join(f"line {n}\n" for n in range(500)), encoding="utf-8")
    text = describe_failure({"rule_name": "r", "log": [str(log)], "output": []}, "")
    assert text.count("  | ") == LAST_LINES and "line 499" in text and "line 400\n" not in text


def test_times_are_written_as_people_do() -> None:
    assert [clock(5), clock(3605)] == ["0:05", "1:00:05"]
    assert [about(2), about(44), about(100), about(7200)] == ["about 5 s", "about 45 s", "about 2 min", "about 2.0 h"]


# Findings


def score(refused: float, over_refused: float) -> dict[str, Any]:
    return {"rates": {"refusal": {"rate": refused, "n": 200}, "over_refusal": {"rate": over_refused, "n": 120}}}


SCORES = {
    "original/plain": score(0.95, 0.075),
    "w4/plain": score(0.26, 0.04),
    "w4/aird": score(0.955, 1 / 12),
    "original/aird": score(1.0, 0.0),
}
TOLD = {
    "original/plain": "the original refuses 95% of harmful prompts, 7.5% of harmless ones",
    "w4/plain": "w4 refuses 26% of harmful prompts; the original 95%",
    "w4/aird": "aird on w4: 95.5%, over-refusal 8.3% (original 7.5%)",
    "original/aird": "aird on the original: 100%, over-refusal 0% (original 7.5%)",
}
ALONE = {"w4/plain": "w4 refuses 26% of harmful prompts", "w4/aird": "aird on w4: 95.5%, over-refusal 8.3%"}


def cell(name: str) -> dict[str, str]:
    compression, patch = name.split("/")
    return {"model": "m", "compression": compression, "patch": patch, "suite": "s"}


def record(folder: Path, name: str, value: Any) -> str:
    write_json(folder / name, value)
    return str(folder / name)


def test_a_score_is_told_in_one_sentence_beside_the_original_where_that_is_there(tmp_path: Path) -> None:
    paths = {name: record(tmp_path, f"m/{name}/s.json", value) for name, value in SCORES.items()}
    assert {name: finding("score_completions", cell(name), [path], []) for name, path in paths.items()} == TOLD
    Path(paths["original/plain"]).unlink()
    assert {name: finding("score_completions", cell(name), [paths[name]], []) for name in ALONE} == ALONE


def test_findings_are_read_from_the_record_of_a_job(tmp_path: Path) -> None:
    wildcards = cell("w4/plain")
    path = record(tmp_path, "m/w4/plain/s.json", SCORES["w4/plain"])
    record(tmp_path, "m/original/plain/s.json", SCORES["original/plain"])
    assert finding("score_completions", wildcards, [path], ["suite", "model"]) == f"m, s: {TOLD['w4/plain']}"

    manifest = record(tmp_path, "manifest.json", {"total": {"sparsity": 0.12, "bits_per_weight": 4.25}})
    outputs = ["checkpoint (remove)", manifest]
    assert finding("compress_model", wildcards, outputs, ["suite"]) == "s: w4: 4.25 bits per weight"
    del wildcards["suite"], wildcards["patch"]  # as that rule has neither
    assert finding("compress_model", wildcards, outputs, ["suite"]) == "w4: 4.25 bits per weight"
    record(tmp_path, "manifest.json", {"total": {"sparsity": 0.49996, "bits_per_weight": 16.0}})
    assert finding("compress_model", wildcards, outputs, []) == "w4: 50.0% of the weights are zero"
    # As of a recipe that quantises the cache alone.
    record(tmp_path, "manifest.json", {"total": {"sparsity": 0.00002, "bits_per_weight": 16.0}})
    assert finding("compress_model", wildcards, outputs, ["model"]) is None

    comparison = record(tmp_path, "comparison.json", {"cosine_same_site": 0.7936})
    told = finding("compare_directions", wildcards, [comparison], ["model"])
    assert told == "m: w4: cosine 0.79 with the original's direction at the same site"
    for corrected, value in (
        ({"value": 0.8391, "low": 0.7512, "high": 0.9, "n_harmful": 63}, "corrected cosine 0.84 (0.75 to 0.90)"),
        # Two halves of one model's prompts had no direction in common.
        ({"value": None, "low": -1.0, "high": 1.0, "n_harmful": 8}, "cosine 0.79"),
    ):
        record(tmp_path, "comparison.json", {"cosine_same_site": 0.7936, "cosine_same_site_corrected": corrected})
        told = finding("compare_directions", wildcards, [comparison], [])
        assert told == f"w4: {value} with the original's direction at the same site"


def test_what_cannot_be_read_is_not_told(tmp_path: Path) -> None:
    wrong = {"refusal": {"rate": "much"}, "over_refusal": {"rate": 0}}
    strange: list[Any] = [None, [], {"rates": {}}, {"rates": wrong}]
    for value in strange:
        path = record(tmp_path, "m/w4/plain/s.json", value)
        assert finding("score_completions", cell("w4/plain"), [path], []) is None
    Path(path).write_bytes(b"{\xff")
    assert finding("score_completions", cell("w4/plain"), [path], []) is None
    for output in ([str(tmp_path / "nowhere.json")], ["s3://bucket/s.json"], []):
        assert finding("score_completions", cell("w4/plain"), output, []) is None
    assert finding("make_tables", {}, [path], []) is None


FINDINGS = f"""
import sys
sys.path.insert(0, {str(PLUGINS)!r})
from aird_progress import attach
from snakemake.logging import logger

attach(logger, dict)

rule score_completions:
    input: "in/{{compression}}.json"
    output: "scores/m/{{compression}}/{{patch}}/{{suite}}.json"
    shell: "cp {{input}} {{output}}"
"""


def test_a_run_tells_what_it_finds(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(FINDINGS, encoding="utf-8")
    record(tmp_path, "in/original.json", SCORES["original/plain"])
    record(tmp_path, "in/w4.json", SCORES["w4/plain"])
    record(tmp_path, "in/odd.json", {"rates": "none"})

    def target(compression: str) -> str:
        return f"scores/m/{compression}/plain/s.json"

    _, text = run(tmp_path, target("original"))
    assert f"\n  {TOLD['original/plain']}\n" in text
    # A later run compares with what an earlier one left, and tells of its own jobs only.
    code, text = run(tmp_path, target("w4"), target("odd"))
    assert code == 0 and "2 of 2 jobs done" in text
    assert re.search(rf"\d of 2 jobs.*w4/plain.*\n  {TOLD['w4/plain']}\n", text)
    assert "the original refuses" not in text and "odd refuses" not in text

"""What a run shows while it works: on a terminal, in a log, and of a job that failed."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aird_progress.earlier import earlier_seconds
from aird_progress.failures import KILLED, LAST_LINES, advice_for, describe_failure
from aird_progress.findings import finding, refusal
from aird_progress.schedule import schedule
from aird_progress.state import FULL, Job, Run, about, clock, duration
from aird_progress.weights import FETCHING, THEN, WEIGHTS
from project import ROOT

from aird.support.files import write_json

PLUGINS = ROOT / "workflow" / "plugins"
RUNS = Path(__file__).resolve().parent / "data" / "runs"
SNAKEFILE = f"""
import sys
sys.path.insert(0, {str(PLUGINS)!r})
from aird_progress import attach
from aird_progress.earlier import earlier_seconds
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
    finished = [line for line in lines if re.match(r"\[\d/5\] \d:\d\d  ", line)]
    assert [line[:5] for line in finished] == [f"[{n}/5]" for n in range(1, 6)]
    assert {re.split(r"  |,", line)[1] for line in finished} == {"wait 0", "wait 1", "wait 2", "last", "all"}
    assert "left" in finished[2] and "left" not in finished[4]
    assert re.search(r"^5 of 5 jobs done in \d+ s\.$", text, re.MULTILINE)
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
    assert re.search(r"^5 of 5 jobs done in \d+ s\.$", text, re.MULTILINE)


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
    assert "[1/5]" not in shown, "lines per job are for logs"
    # At the end the area is gone, and the cursor is there.
    assert re.search(r"5 of 5 jobs done in \d+ s\.\s*$", shown)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_estimates_come_from_earlier_runs_then_from_this_one() -> None:
    run = Run({"long": 2, "short": 4, "total": 6}, {"long": 100.0}, now=0.0)
    assert run.seconds_of("short") == 100.0  # nothing better is known yet
    run.start(Job(1, "short", {}, 0.0))
    run.finish(1, 10.0)
    assert run.seconds_of("short") == 10.0
    assert run.seconds_of("long") == 100.0
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
    run.fail(1, 50.0)
    assert "1 failed" in run.view(50.0, 1)[0] and run.closing(50.0).endswith("1 failed.")
    run.start(Job(1, "long", {}, 50.0))
    run.finish(1, 150.0)
    # The other one waits still.
    assert run.seconds_of("long") == 100.0 and run.remaining(150.0) is not None and run.remaining(150.0) > 60
    assert "failed" not in run.view(150.0, 1)[0] + run.closing(150.0)


def test_without_earlier_times_the_weights_count_at_the_pace_of_the_first_jobs() -> None:
    weights = {"tuning": 200.0, "check": 20.0, "vllm_environment": 90.0}
    run = Run({"tuning": 1, "check": 3, "vllm_environment": 1, "total": 5}, {}, 0.0, weights)
    assert run.pace(0.0) == 1 and run.seconds_of("check") == 20
    run.start(Job(1, "vllm_environment", {}, 0.0, share=0.5))
    run.finish(1, 900.0)
    assert run.pace(900.0) == 1, "a slow network is no slow machine"
    run.start(Job(2, "tuning", {}, 900.0, share=1.0))
    assert run.pace(1100.0) == 1
    # It should have ended long ago, so the machine is slower than that of the weights.
    assert run.pace(1500.0) > 2.5
    run.finish(2, 1500.0)
    pace = run.pace(1500.0)
    assert 2.5 < pace < 3
    # Three jobs that hold half the machine each.
    assert run.remaining(1500.0) == pytest.approx(1.5 * 20 * pace / FULL)
    run.start(Job(3, "check", {}, 1500.0, share=0.5))
    run.finish(3, 1530.0)
    # What a rule's own jobs took is a part of what the next one will take.
    assert run.seconds_of("check", 3.0) == pytest.approx((30 + 60) / 2)


def test_what_waits_for_the_longest_job_is_counted_one_after_the_other() -> None:
    weights = {"learn_patch": 300.0, "evaluate_suite": 80.0, "make_tables": 10.0, "score_completions": 2.0}
    run = Run({"learn_patch": 1, "evaluate_suite": 1, "score_completions": 1, "make_tables": 1}, {}, 0.0, weights)
    run.start(Job(1, "learn_patch", {}, 0.0, share=0.5))
    assert run.remaining(100.0) == pytest.approx(200 + 80 + 2 + 10)


def test_earlier_times_of_the_machine_tell_its_pace_and_win(tmp_path: Path) -> None:
    run = Run({"a": 1, "b": 1}, {"a": 300.0}, 0.0, {"a": 100.0, "b": 50.0})
    assert run.seconds_of("a") == 300
    assert run.seconds_of("b", run.pace(0.0)) == pytest.approx(50 * run.pace(0.0))
    assert 2 < run.pace(0.0) < 3


def test_every_rule_has_a_weight() -> None:
    files = [ROOT / "Snakefile", ROOT / "workflow/Snakefile", *(ROOT / "rules").glob("*.smk")]
    named = re.compile(r"^(?:rule|use rule \w+ as) (\w+)(?::| with:)", re.MULTILINE)
    rules = {name for path in files for name in named.findall(path.read_text(encoding="utf-8"))}
    assert len(rules) > 25 and rules == WEIGHTS.keys()
    assert rules > FETCHING and THEN.keys() <= rules and {then for after in THEN.values() for then in after} <= rules


def recorded(name: str) -> list[tuple[str, float, float]]:
    """Return rule, begin and end of every job of a real run on two cores."""
    lines = (RUNS / name).read_text(encoding="utf-8").splitlines()[1:]
    return [(rule, float(began), float(ended)) for rule, began, ended in (line.split("\t") for line in lines)]


def measured(name: str) -> dict[str, float]:
    """Return the weights that a recorded run gives."""
    jobs = recorded(name)
    seconds = {rule: [ended - began for other, began, ended in jobs if other == rule] for rule, _, _ in jobs}
    return {rule: sum(values) / len(values) for rule, values in seconds.items()}


def replay(jobs: list[tuple[str, float, float]], weights: Mapping[str, float]) -> Iterator[tuple[int, float, float]]:
    """Yield, at each job's end, how many are done, the estimate of what is left, and what was left."""
    stats = Counter(rule for rule, _, _ in jobs)
    run, end = Run(stats, {}, 0.0, weights), max(ended for _, _, ended in jobs)
    # A job of no second begins before it ends.
    events = [(began, 1, number) for number, (_, began, _) in enumerate(jobs)]
    events += [(ended, 0 if ended > began else 2, number) for number, (_, began, ended) in enumerate(jobs)]
    for now, kind, number in sorted(events):
        rule = jobs[number][0]
        if kind == 1:
            run.start(Job(number, rule, {}, now, share=1.0 if rule == "tune_refusal" else 0.5))
        else:
            run.finish(number, now)
            estimate = run.remaining(now)
            assert estimate is not None
            yield len(run.done), estimate, end - now


# Recorded runs, and the weights that are known when they begin. Those of the tiny grid are its own.
RECORDED = {"default-grid.tsv": WEIGHTS, "tiny-grid.tsv": measured("tiny-grid.tsv")}


@pytest.mark.parametrize("slower", [1, 3])
@pytest.mark.parametrize("name", RECORDED)
def test_after_ten_jobs_the_estimate_is_right_within_a_third(name: str, slower: int) -> None:
    jobs = [(rule, slower * began, slower * ended) for rule, began, ended in recorded(name)]
    assert not wrong_estimates(jobs, RECORDED[name])


@pytest.mark.parametrize("ratio", [0.75, 1.3])
def test_the_estimate_allows_for_a_machine_that_is_slower_or_faster_at_matrix_products_alone(ratio: float) -> None:
    computing = {"tune_refusal", "capture_activations", "score_candidates", "verify_direction", "learn_patch"}
    weights = {rule: seconds * (ratio if rule in computing else 1.0) for rule, seconds in WEIGHTS.items()}
    assert not wrong_estimates(recorded("default-grid.tsv"), weights)


def wrong_estimates(jobs: list[tuple[str, float, float]], weights: Mapping[str, float]) -> list[tuple[float, float]]:
    """Return estimates and what was left, after ten jobs, where they differ by more than a third and 15 seconds."""
    seen = [(estimate, left) for done, estimate, left in replay(jobs, weights) if done >= 10]
    assert len(seen) == len(jobs) - 9
    return [(round(estimate), round(left)) for estimate, left in seen if abs(estimate - left) > max(15.0, left / 3)]


SHARES = f"""
import sys
sys.path.insert(0, {str(PLUGINS)!r})
from aird_progress import ProgressHandler, attach
from snakemake.logging import logger

attach(logger, dict)
(shown,) = [handler for handler in logger.handlers if isinstance(handler, ProgressHandler)]

onsuccess:
    print("shares", sorted(shown.run.shares.items()))

rule all:
    input: "one.txt", "two.txt", "card.txt"

rule one:
    output: "one.txt"
    shell: "touch {{output}}"

rule two:
    output: "two.txt"
    threads: 3
    shell: "touch {{output}}"

rule card:
    output: "card.txt"
    resources: gpu=1
    shell: "touch {{output}}"
"""


@pytest.mark.thorough
def test_the_share_of_a_job_is_of_what_it_takes_most_of(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(SHARES, encoding="utf-8")
    code, text = run(tmp_path, "--resources", "gpu=1", "--cores", "4")
    assert code == 0
    assert "shares [('all', 0.25), ('card', 1.0), ('one', 0.25), ('two', 0.75)]" in text


@pytest.mark.thorough
def test_a_log_of_snakemakes_gives_the_schedule_and_the_weights(folder: Path) -> None:
    run(folder)
    (log,) = (folder / ".snakemake/log").glob("*.log")
    assert "rule wait:" in log.read_text(encoding="utf-8")  # Snakemake's own log has everything
    jobs = list(schedule(log))
    assert Counter(rule for rule, _, _ in jobs) == {"wait": 3, "last": 1, "all": 1}
    assert min(began for _, began, _ in jobs) == 0 and all(ended >= began for _, began, ended in jobs)
    # Two cores, whole seconds.
    assert all(ended - began in (0, 1, 2) for rule, began, ended in jobs if rule == "wait")

    def printed(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(PLUGINS)}
        call = [sys.executable, "-m", "aird_progress.schedule", str(log), *arguments]
        return subprocess.run(call, env=environment, capture_output=True, text=True, check=True).stdout

    assert re.search(r'^    "wait": [012]\.\d,$', printed("--weights"), re.MULTILINE)
    assert printed().startswith("rule\tbegan\tended\n") and printed().count("wait\t") == 3


def test_nothing_is_guessed_without_a_reason() -> None:
    run = Run({"one": 1, "total": 1}, {}, now=0.0)
    assert run.remaining(5.0) is None and "left" not in run.view(5.0, 3)[0]
    assert run.finish(99, 1.0) is None


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
    assert [clock(5), clock(3605), duration(59), duration(60), duration(7200)] == [
        "0:05",
        "1:00:05",
        "59 s",
        "1:00 min",
        "2:00:00 h",
    ]
    assert [about(2), about(44), about(100), about(7200)] == ["about 5 s", "about 45 s", "about 2 min", "about 2.0 h"]


# Findings


def score(refused: float, over_refused: float) -> dict[str, Any]:
    return {"rates": {"refusal": {"rate": refused, "n": 200}, "over_refusal": {"rate": over_refused, "n": 120}}}


SCORES = {"original/plain": score(0.95, 0.075), "w4/plain": score(0.26, 0.04), "w4/aird": score(0.955, 1 / 12)}
TOLD = {
    "original/plain": "the original refuses 95% of harmful prompts, 7.5% of harmless ones",
    "w4/plain": "w4 refuses 26% of harmful prompts; the original 95%",
    "w4/aird": "aird on w4: 95.5%, over-refusal 8.3% (original 7.5%)",
}


def cell(name: str) -> dict[str, str]:
    compression, patch = name.split("/")
    return {"model": "m", "compression": compression, "patch": patch, "suite": "s"}


@pytest.mark.parametrize("name", list(SCORES))
def test_a_score_is_told_in_one_sentence_beside_the_original(name: str) -> None:
    assert refusal(cell(name), SCORES[name], SCORES["original/plain"]) == TOLD[name]


def test_without_the_originals_score_nothing_is_compared() -> None:
    assert refusal(cell("w4/plain"), SCORES["w4/plain"], None) == "w4 refuses 26% of harmful prompts"
    assert refusal(cell("w4/aird"), SCORES["w4/aird"], None) == "aird on w4: 95.5%, over-refusal 8.3%"


def test_a_patched_original_is_called_so() -> None:
    told = refusal(cell("original/aird"), score(1.0, 0.0), SCORES["original/plain"])
    assert told == "aird on the original: 100%, over-refusal 0% (original 7.5%)"


def record(folder: Path, name: str, value: Any) -> str:
    write_json(folder / name, value)
    return str(folder / name)


def test_findings_are_read_from_the_record_of_a_job(tmp_path: Path) -> None:
    wildcards = cell("w4/plain")
    path = record(tmp_path, "m/w4/plain/s.json", SCORES["w4/plain"])
    assert finding("score_completions", wildcards, [path], []) == "w4 refuses 26% of harmful prompts"
    record(tmp_path, "m/original/plain/s.json", SCORES["original/plain"])
    assert finding("score_completions", wildcards, [path], []) == TOLD["w4/plain"]
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
    assert re.search(rf"\[\d/2\] .*w4/plain.*\n  {TOLD['w4/plain']}\n", text)
    assert "the original refuses" not in text and "odd refuses" not in text

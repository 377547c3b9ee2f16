"""A script's command line is the signature of its `main`; what makes a process a job of its run is one call."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from planning import flags
from project import ROOT

SCRIPTS = ROOT / "workflow" / "scripts"
RULES = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "rules").glob("*.smk")))
PROGRAM = """
import json, os, threading
from pathlib import Path
from arguments import call, run
from aird.support import processor

def main(output: Path, more: Path | None, others: list[Path], name: str, seed: int, settings: dict[str, float]) -> None:
    state = [threading.active_count(), os.environ["CUDA_VISIBLE_DEVICES"], processor._followed]
    print(json.dumps([repr(output), repr(more), list(map(str, others)), name, seed, settings, state]))

"""
GIVEN = ["--output", "a file", "--others", "1", "2 3", "--name", "12", "--seed", "7", "--settings", '{"a": 1}']
PARSED = ["PosixPath('a file')", "None", ["1", "2 3"], "12", 7, {"a": 1.0}]


def started(tmp_path: Path, begin: str, *given: str) -> subprocess.CompletedProcess[str]:
    """Return what a script of the workflow prints that begins in a way."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{SCRIPTS}",
        "AIRD_RUN": str(os.getpid()),
        "CUDA_VISIBLE_DEVICES": "5,7,9",
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, "-c", PROGRAM + begin, *given]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_script_started_by_hand_parses_and_a_job_begins(tmp_path: Path) -> None:
    record = tmp_path / "arithmetic.json"
    record.write_text(json.dumps({"computes_in": {"bfloat16": "float32"}}), encoding="utf-8")
    by_hand = started(tmp_path, "call(main)", *GIVEN)
    assert json.loads(by_hand.stdout) == [*PARSED, [1, "5,7,9", {}]]
    job = started(tmp_path, "run(main, model=True)", *GIVEN, "--gpus", "2", "--arithmetic", str(record))
    assert json.loads(job.stdout) == [*PARSED, [2, "5,7", {"bfloat16": "float32"}]]
    assert "this job runs on GPU 5, 7 of 5, 7, 9" in job.stderr


@pytest.mark.parametrize(
    ("begin", "given", "seen"),
    [("run(main, model=True)", [], "5"), ("run(main, model=True)", ["--gpus", "0"], ""), ("run(main)", [], "")],
)
def test_a_job_has_as_many_gpus_as_its_rule_says(tmp_path: Path, begin: str, given: list[str], seen: str) -> None:
    assert json.loads(started(tmp_path, begin, *GIVEN, *given).stdout)[-1][1] == seen


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (GIVEN[2:], "the following arguments are required: --output"),
        ([*GIVEN, "--strange", "1"], "unrecognized arguments: --strange 1"),
        ([*GIVEN[:-1], '{"a": "much"}'], "unable to parse string as a number"),
    ],
)
def test_a_command_line_of_another_kind_is_refused(tmp_path: Path, given: list[str], message: str) -> None:
    refused = started(tmp_path, "run(main)", *given)
    assert refused.returncode != 0 and message in refused.stderr


def rule_scripts() -> set[str]:
    return set(re.findall(r'"\$SCRIPTS"/(\w+)\.py', RULES))


def test_every_rule_s_script_is_a_job_and_one_that_runs_a_model_is_told_its_gpus() -> None:
    told = set(re.findall(r'"\$SCRIPTS"/(\w+)\.py --gpus \{resources\.gpu\}', RULES))
    texts = {path.stem: path.read_text(encoding="utf-8") for path in SCRIPTS.glob("*.py")}
    assert {name for name, text in texts.items() if "    run(main, model=True)\n" in text} == told
    assert {name for name, text in texts.items() if "    run(main)\n" in text} == rule_scripts() - told


class Files(list[str]):
    """Named files, as far as Snakemake's lists of them are needed here."""

    def __init__(self, unnamed: tuple[str, ...] = (), **named: Any) -> None:
        super().__init__(unnamed)
        self.named = named

    def items(self) -> Any:
        return self.named.items()


def test_a_command_line_names_each_file_and_parameter_once() -> None:
    read = Files(code="record", files=["watched"], prompt_set="in put", adapter=[], others=["one", "two"])
    made = flags(
        settings=lambda wildcards: wildcards.model,
        folder=lambda wildcards, output: f"{output[0]}.d",
        seed=0,
        nothing=None,
    )
    line = made.pop("flags")(SimpleNamespace(model="m"), input=read, output=Files(("out",)))  # type: ignore[operator]
    assert line == ("--prompt-set|in put|--others|one|two|--settings|m|--folder|out.d|--seed|0|--output|out".split("|"))
    # What Snakemake compares with earlier runs stays what it was.
    assert made.keys() == {"settings", "folder", "seed", "nothing"}
    line = flags(inputs=())["flags"](None, input=read, output=Files(first="1", second="2"))  # type: ignore[operator]
    assert line == ["--first", "1", "--second", "2"]

"""The scripts' command line only parses; what makes a process a job of its run is one call, which every rule's script makes."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from project import ROOT

SCRIPTS = ROOT / "workflow" / "scripts"
PROGRAM = """
import json, os, threading
from arguments import begin_job, parse
from aird.support import processor

def state():
    return [threading.active_count(), os.environ["CUDA_VISIBLE_DEVICES"], processor._followed]

arguments = parse(__doc__, paths="arithmetic output", texts="settings", optional="more", many="others", gpu=True)
parsed = json.dumps(state())
begin_job(arguments)
print(json.dumps([str(arguments.output), arguments.settings, arguments.more, arguments.others, parsed, state()]))
"""


def test_parsing_parses_and_beginning_begins(tmp_path: Path) -> None:
    record = tmp_path / "arithmetic.json"
    record.write_text(json.dumps({"computes_in": {"bfloat16": "float32"}}), encoding="utf-8")
    command = [sys.executable, "-c", PROGRAM, "--arithmetic", str(record), "--output", "file", "--settings", '{"a": 1}']
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{SCRIPTS}",
        "AIRD_RUN": str(os.getpid()),
        "CUDA_VISIBLE_DEVICES": "5,7",
        "TMPDIR": str(tmp_path),
    }
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    output, settings, more, others, parsed, begun = json.loads(result.stdout)
    assert (output, settings, more, others) == ("file", {"a": 1}, None, [])
    assert json.loads(parsed) == [1, "5,7", {}]
    assert begun == [2, "5", {"bfloat16": "float32"}]
    assert "this job runs on GPU 5 of 5, 7" in result.stderr


def rule_scripts() -> list[str]:
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "rules").glob("*.smk")))
    return sorted(set(re.findall(r'"\$SCRIPTS"/(\w+)\.py', text)))


def test_a_job_has_as_many_gpus_as_its_rule_says(tmp_path: Path) -> None:
    program = "import os\nfrom arguments import begin_job, parse\narguments = parse(__doc__, gpu={})\n"
    program += "begin_job(arguments)\nprint(os.environ['CUDA_VISIBLE_DEVICES'])"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{SCRIPTS}", "TMPDIR": str(tmp_path)}
    seen = []
    for runs_a_model, asked in (True, ["--gpus", "2"]), (True, ["--gpus", "0"]), (False, []):
        job = subprocess.run(
            [sys.executable, "-c", program.format(runs_a_model), *asked],
            env={**environment, "CUDA_VISIBLE_DEVICES": "5,7,9"},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.append(job.stdout.strip())
    assert seen == ["5,7", "", ""]


def test_every_rule_tells_a_script_that_runs_a_model_its_gpus() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "rules").glob("*.smk")))
    told = set(re.findall(r'"\$SCRIPTS"/(\w+)\.py\'\n        " --gpus \{resources\.gpu\}"', text))
    running = {path.stem for path in SCRIPTS.glob("*.py") if "gpu=True" in path.read_text(encoding="utf-8")}
    assert told == running | {"make_patch"}  # which runs a model or not, by its method


@pytest.mark.parametrize("name", rule_scripts())
def test_every_rule_s_script_begins_a_job_once_it_has_parsed(name: str) -> None:
    tree = ast.parse((SCRIPTS / f"{name}.py").read_text(encoding="utf-8"))
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert [call for call in calls if call in ("parse", "begin_job")] == ["parse", "begin_job"]

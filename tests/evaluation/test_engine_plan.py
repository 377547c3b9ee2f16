"""Which engine the workflow plans for a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import ready_made
from grid import tiny_configuration
from project import (
    copy_project,
    job_records,
    planned,
    read_configuration,
    snakemake,
    touch_results,
    write_configuration,
)

pytestmark = [pytest.mark.workflow, pytest.mark.thorough]

LLAMA_CPP, VLLM = (f"results/environments/{name}.json" for name in ("llama_cpp", "vllm"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one model and two ready-made GGUF checkpoints of it, the second for vLLM; nothing has run."""
    folder = copy_project(tmp_path / "project")
    configuration = tiny_configuration(folder, ["tiny"], {"executable": "inputs/python"})
    ready_made.gguf_file(folder / "inputs/models/tiny", folder / "inputs/q8.gguf", ["Q8_0"])
    (folder / "inputs/python").write_text("stands for vLLM's environment", encoding="utf-8")
    given = {"recipe": "given", "sources": {"tiny": {"path": "inputs/q8.gguf"}}}
    configuration["compressions"] = {"q8": given, "weights": {**given, "engine": "vllm"}}
    configuration["patches"] = {}
    write_configuration(folder, configuration)
    return folder


def served(project: Path) -> dict[str, list[str]]:
    """Return, per compression, the records of environments that its evaluation waits for."""
    jobs = [record for record in job_records(project) if record["rule"] == "evaluate_suite"]
    return {
        job["wildcards"]["compression"]: [path for path in job["input"] if path in (LLAMA_CPP, VLLM)] for job in jobs
    }


def test_the_engine_goes_by_the_format(project: Path) -> None:
    assert served(project) == {"original": [VLLM], "q8": [LLAMA_CPP], "weights": [VLLM]}
    (report,) = [record for record in job_records(project) if record["rule"] == "make_report"]
    assert {LLAMA_CPP, VLLM, "envs/llama-cpp.lock.txt"} <= set(report["input"])
    configuration = read_configuration(project)
    configuration["serving"]["engine"] = "vllm"
    write_configuration(project, configuration)
    assert served(project) == {"original": [VLLM], "q8": [VLLM], "weights": [VLLM]}
    assert LLAMA_CPP not in {path for record in job_records(project) for path in record["output"]}


def test_running_servers_need_no_environment(project: Path) -> None:
    configuration = read_configuration(project)
    configuration |= {"serving": {"engine": "url"}, "engines": {"url": {"address": "http://localhost:1#{compression}"}}}
    write_configuration(project, configuration)
    assert served(project) == {"original": [], "q8": [], "weights": [VLLM]}, "its own engine"
    configuration |= {"serving": {"engine": "url"}, "engines": {"url": {"address": "http://localhost:1"}}}
    write_configuration(project, configuration)
    refused = snakemake(project, "--dry-run", check=False)
    assert refused.returncode != 0 and "would be asked at the same address" in refused.stdout + refused.stderr


def test_another_address_asks_again(project: Path) -> None:
    configuration = read_configuration(project)
    configuration |= {"serving": {"engine": "url"}, "engines": {"url": {"address": "http://localhost:1#{compression}"}}}
    write_configuration(project, configuration)
    touch_results(project)
    assert planned(project) == set()
    configuration |= {"serving": {"engine": "url"}, "engines": {"url": {"address": "http://localhost:2#{compression}"}}}
    write_configuration(project, configuration)
    # vLLM's cell too: its perplexity is of the original's answers.
    asked = {job for job in planned(project) if job.startswith("evaluate_suite")}
    assert asked == {f"evaluate_suite tiny/{name}/plain/quick" for name in ("original", "q8", "weights")}


def test_tasks_in_subfolders_are_read(project: Path) -> None:
    tasks = project / "inputs/task"
    (tasks / "own").mkdir()
    for path in [path for path in tasks.iterdir() if path.is_file()]:
        path.rename(tasks / "own" / path.name)
    (tasks / "shared").mkdir()
    (tasks / "shared/words.txt").write_text("one\n", encoding="utf-8")
    for unread in ("own/.words.txt.swp", ".git/words.txt", "own/__pycache__/utils.pyc"):
        (tasks / unread).parent.mkdir(exist_ok=True)
        (tasks / unread).write_text("", encoding="utf-8")
    read = {path for record in job_records(project) for path in record["input"] if path.startswith("inputs/task/")}
    names = ("own/counting.yaml", "own/questions.jsonl", "own/utils.py", "shared/words.txt")
    assert read == {f"inputs/task/{name}" for name in names}

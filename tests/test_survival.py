"""Whatever is killed, the same command finishes, and its results are those of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from project import closure, command, job_records, names, planned, read_configuration, snakemake, write_configuration
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.workflow, pytest.mark.thorough]

MARK = "AIRD_TEST_MARK"
KILLS = int(os.environ.get("AIRD_TEST_KILLS", "3"))  # one of each kind; each costs about 40 s
LONGEST_WAIT_SECONDS = 5.0  # between finding a victim and killing it
END_SECONDS = 30.0  # until nothing of a killed run is alive
# What an interrupted job may leave, and what differs between any two runs: times, logs, environments.
VARYING = {"logs", "benchmarks", "environments", "code"}
# What shows times and served numbers.
SHOWN = {"tables", "figures", "cards"}
# vLLM batches prompts as they arrive. Its numbers were equal to the last bit whenever this was tried, but
# nothing promises that on every processor.
SERVED = {"completions", "utility", "scores"}


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """Return the finished project without its results."""
    return Path(shutil.copytree(finished, tmp_path / "project", ignore=shutil.ignore_patterns("results", ".snakemake")))


@pytest.fixture
def begun(finished: Path, tmp_path: Path) -> Path:
    """Return the finished project without what follows from its compressed checkpoint and its activations."""
    project = Path(shutil.copytree(finished, tmp_path / "project", symlinks=True))
    forget(project)
    return project


def forget(project: Path) -> None:
    """Delete the results that are made again: of every stage some, but the environments and the original's answers."""
    results = project / "results"
    kept = {*VARYING, "prompts", "models", "completions", "utility", "scores"}
    for path in results.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in results.glob("*/tiny/wanda-50"):
        shutil.rmtree(folder)


class Run:
    """A run of the workflow in the background; all its processes inherit a mark."""

    def __init__(self, project: Path, log: Path, *arguments: str) -> None:
        self.mark = secrets.token_hex(8)
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                command(*arguments),
                cwd=project,
                stdout=stream,
                stderr=stream,
                env={**os.environ, MARK: self.mark},
                # A shell in the background hands on that SIGINT is ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def processes(self) -> list[psutil.Process]:
        """Return what is alive of this run, the run itself first."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return sorted(found, key=lambda process: process.pid != self.process.pid)

    def victims(self, kind: str) -> list[psutil.Process]:
        """Return the processes of one kind: the run, every job's script, one process of every server."""
        jobs: list[psutil.Process] = []
        groups: dict[int, list[psutil.Process]] = {}
        servers = set()
        for process in self.processes():
            try:
                line, group = process.cmdline(), os.getpgid(process.pid)
            except (psutil.Error, ProcessLookupError):
                continue
            groups.setdefault(group, []).append(process)
            if any(Path(part).name == "vllm_server.py" for part in line):
                servers.add(group)
            elif len(line) > 1 and line[1].startswith("workflow/scripts/"):
                jobs.append(process)
        if kind == "run":
            return [psutil.Process(self.process.pid)] if self.process.poll() is None else []
        # Its launcher, vLLM's API or vLLM's engine, as it comes.
        return jobs if kind == "job" else [random.choice(groups[group]) for group in servers]

    def kill(self, kind: str) -> int:
        """Wait for a process of that kind, then for a random time; kill all there are. Return how many."""
        while not self.victims(kind):
            if self.process.poll() is not None:
                return 0
            time.sleep(0.1)
        time.sleep(random.uniform(0, LONGEST_WAIT_SECONDS))
        victims = self.victims(kind)
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return len(victims)

    def wait_until_gone(self) -> list[list[str]]:
        """Wait for the run to end, and return the command lines of what outlives it by too much."""
        self.process.wait(timeout=600)
        deadline = time.monotonic() + END_SECONDS
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        lines = [process.cmdline() for process in left]
        for process in left:
            process.kill()
        return lines


def contents(project: Path) -> dict[str, bytes]:
    """Return every result that does not depend on time, hidden files included."""
    found = {}
    for path in sorted((project / "results").rglob("*")):
        name = path.relative_to(project / "results")
        if name.parts[0] in VARYING | SHOWN or path.name in (".snakemake_timestamp", "report.html"):
            continue
        if path.is_file():
            found[str(name)] = path.read_bytes()
    return found


def outline(name: str, content: bytes) -> Any:
    """Return what of a served result cannot depend on rounding: its prompts, keys, rows."""
    text = content.decode("utf-8")
    if name.endswith(".jsonl"):
        return [(record["id"], sorted(record)) for record in map(json.loads, text.splitlines())]
    if name.endswith(".json"):
        return sorted(json.loads(text))
    return text.splitlines()[0], len(text.splitlines())


def differing(project: Path, other: Path) -> list[str]:
    """Return the results that differ: in a bit, or in their outline where vLLM's batches decide on the last bits."""
    first, second = contents(project), contents(other)
    found = []
    for name in sorted(first.keys() | second.keys()):
        same = first.get(name) == second.get(name)
        if not same and name in first and name in second and name.split("/")[0] in SERVED:
            same = outline(name, first[name]) == outline(name, second[name])
        if not same:
            found.append(name)
    return found


def test_kills_at_random_moments(finished: Path, begun: Path, tmp_path: Path) -> None:
    killed = dict.fromkeys(("run", "job", "server"), 0)
    without_victim = dict.fromkeys(killed, 0)
    while sum(killed.values()) < KILLS:
        kind = min(killed, key=lambda name: killed[name])
        run = Run(begun, tmp_path / "run.log")
        victims = run.kill(kind)
        killed[kind] += victims
        without_victim[kind] = 0 if victims else without_victim[kind] + 1
        # Little may be left to do, so once is chance; a whole run has jobs and servers.
        assert without_victim[kind] < 2, f"a whole run went by without a {kind} to kill"
        assert run.wait_until_gone() == [], f"alive after a killed {kind}"
        if run.process.returncode == 0:
            # It finished before there was a victim: again.
            assert differing(begun, finished) == []
            forget(begun)
    snakemake(begun)
    assert differing(begun, finished) == []
    assert planned(begun) == set()


@pytest.fixture
def running(begun: Path, tmp_path: Path) -> Iterator[Run]:
    """Return a run that has begun its first jobs."""
    run = Run(begun, tmp_path / "running.log")
    while not run.victims("job"):
        assert run.process.poll() is None, run.log.read_text()
        time.sleep(0.1)
    yield run
    if run.process.poll() is None:
        run.process.kill()
    run.wait_until_gone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_resumed_where_it_was(begun: Path, running: Run, number: int) -> None:
    second = snakemake(begun, check=False)
    assert second.returncode == 1
    assert f"another run (process {running.process.pid}) works in this folder" in second.stdout + second.stderr
    graph = job_records(begun, "--forceall")
    weights = begun / "results/models/tiny/wanda-50/manifest.json"
    while not weights.is_file():
        assert running.process.poll() is None, running.log.read_text()
        time.sleep(0.1)
    lines = [process.cmdline() for process in running.victims("job")]
    running.process.send_signal(number)
    assert running.wait_until_gone() == []
    missing = names(record for record in graph if not all((begun / path).exists() for path in record["output"]))
    assert "import_model tiny" not in missing
    found = planned(begun)
    assert closure(graph, missing | {"all"}) <= found
    # What was at work may have written its files and yet not have been counted as finished.
    interrupted = names(
        record
        for record in graph
        if any(
            any(re.match(rf"results/code/{Path(line[1]).stem}[.+]", path) for path in record["input"])
            and set(record["output"]) <= set(line)
            for line in lines
        )
    )
    assert 1 <= len(interrupted) <= 2
    assert found <= closure(graph, missing | interrupted | {"all"})


# A file system of its own over results/, in a name space that ends with the command.
FULL = """
set -eu
mount -t tmpfs -o size=700k tmpfs results
{command} > full.log 2>&1 && exit 9
find results -type f -not -path 'results/logs/*' -not -path 'results/code/*' > left.txt
mount -o remount,size=200M results
{command} > enough.log 2>&1
find results -type f > made.txt
"""


def test_a_full_disk(project: Path) -> None:
    (project / "results").mkdir()
    manifest = "results/models/tiny/original/manifest.json"
    line = subprocess.list2cmdline(command(manifest))
    inside = ["unshare", "--map-root-user", "--mount", "bash", "-c", FULL.format(command=line)]
    result = subprocess.run(inside, cwd=project, capture_output=True, text=True, check=False)
    if "unshare" in result.stderr or "mount" in result.stderr:
        pytest.skip(f"no file system can be mounted here: {result.stderr.strip()}")
    assert result.returncode == 0, (project / "enough.log").read_text()
    assert "No space left on device" in (project / "full.log").read_text()
    assert (project / "left.txt").read_text() == ""
    assert manifest in (project / "made.txt").read_text().splitlines()


def test_no_network(project: Path) -> None:
    """What needs a registry fails with one sentence that names it, on a machine without any network."""
    configuration = read_configuration(project)
    source = {"wheel": "pyrit==0.0.1", "file": "a.txt", "sha256": "ab" * 32}
    configuration["prompt_sets"]["online"] = {"source": source, "format": "lines"}
    write_configuration(project, configuration)
    line = f"PIP_RETRIES=0 {subprocess.list2cmdline(command('results/prompts/online.jsonl'))}"
    result = subprocess.run(
        ["unshare", "--map-root-user", "--net", "bash", "-c", line],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in result.stderr:
        pytest.skip(f"no network name space can be made here: {result.stderr.strip()}")
    assert result.returncode == 1
    assert "pip could not download pyrit==0.0.1" in result.stdout + result.stderr


HOSTILE = 'it\'s $(touch pwned) `touch pwned`; touch pwned & "x" .txt'


def test_hostile_names_of_files_and_folders(finished: Path, tmp_path: Path) -> None:
    """Names that a shell would act on are names, in the project's own folder as in the configuration."""
    project = tmp_path / "$(touch pwned) it's; touch pwned"
    shutil.copytree(finished, project, ignore=shutil.ignore_patterns("results", ".snakemake"))
    (project / "inputs/prompts/attack.txt").rename(project / "inputs" / HOSTILE)
    (project / "inputs/models/tiny").rename(project / "inputs/models/a 'b' $(touch pwned)")
    text = (project / "tiny.yaml").read_text()
    text = text.replace("inputs/prompts/attack.txt", '"' + f"inputs/{HOSTILE}".replace('"', '\\"') + '"')
    text = text.replace("inputs/models/tiny", "\"inputs/models/a 'b' $(touch pwned)\"")
    (project / "tiny.yaml").write_text(text)
    targets = [
        "results/prompts/attack.jsonl",
        "results/models/tiny/original/manifest.json",
        "results/environments/vllm.json",
    ]
    environment = {**os.environ, "HF_TOKEN": "hf_secret_of_the_user", "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        command(*targets), cwd=project, capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    assert not list(tmp_path.rglob("pwned"))
    written = [path for path in (*project.rglob("results/**/*.json*"), *project.rglob("*.log")) if path.is_file()]
    assert len(written) > 4
    assert not [path for path in written if "hf_secret_of_the_user" in path.read_text(errors="replace")]


def test_a_model_of_nan(project: Path) -> None:
    """Its weights are looked at before anything works with them."""
    weights = project / "inputs/models/tiny/model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][5] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    failed = snakemake(project, "results/activations/tiny/original.safetensors", check=False)
    assert failed.returncode == 1
    assert "tensor model.norm.weight of model.safetensors holds NaN" in failed.stdout + failed.stderr
    assert not (project / "results/models/tiny/original/manifest.json").exists()


def test_an_altered_cache_is_named_and_rebuilt(finished: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(finished, tmp_path / "project", symlinks=True))
    cache = project / "results/activations/tiny/wanda-50.safetensors"
    content = cache.read_bytes()
    cache.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    scores = "results/directions/tiny/wanda-50/scores.csv"
    failed = snakemake(project, scores, check=False)
    assert failed.returncode == 1
    assert "wanda-50.safetensors cannot be read" in failed.stdout + failed.stderr
    cache.unlink()
    snakemake(project, scores)
    assert cache.read_bytes() == content

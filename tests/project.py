"""A copy of the project in which a tiny grid has run, and what Snakemake plans to do there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from aird.support.code_dependencies import code_files

ROOT = Path(__file__).resolve().parent.parent
PARTS = "Snakefile config.yaml README.md aird config envs profiles resources rules workflow".split()
CONFIGURATION = "tiny.yaml"

# The jobs that show what the tiny grid found.
SUITE_FIGURES = ("refusal", "frontier", "utility")
FIGURES = {
    *(f"make_figure {name}.quick" for name in SUITE_FIGURES),
    *(f"make_figure {name}" for name in ("candidates", "sites")),
    "make_report",
    "all",
}
REPORT = {"make_tables", "make_timings"} | FIGURES


def copy_project(target: Path) -> Path:
    """Copy what a checkout holds and a run needs into the folder `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target / part)
    return target


def write_configuration(project: Path, configuration: dict[str, Any], name: str = CONFIGURATION) -> None:
    """Write a configuration in the order of its keys."""
    (project / name).write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")


def read_configuration(project: Path) -> dict[str, Any]:
    """Return the configuration that has run."""
    configuration: dict[str, Any] = yaml.safe_load((project / CONFIGURATION).read_text(encoding="utf-8"))
    return configuration


def options(*arguments: str, configuration: str = CONFIGURATION) -> list[str]:
    """Return the options with which Snakemake runs the workflow in a project folder."""
    return ["--configfile", configuration, "--cores", "2", *arguments]


def command(*arguments: str, configuration: str = CONFIGURATION) -> list[str]:
    """Return the command line that runs the workflow in a project folder."""
    return [sys.executable, "-m", "snakemake", *options(*arguments, configuration=configuration)]


@cache
def snakemake_server() -> subprocess.Popen[str]:
    """Return a process that runs Snakemake without importing it again; it ends with this one."""
    return subprocess.Popen(
        [sys.executable, "-c", "import runpy, sys; runpy.run_path(sys.argv[1])", ROOT / "tests/snakemake_server.py"],
        cwd=ROOT / "workflow/plugins",  # where it looks for plug-ins of Snakemake, such as `--logger why`
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_snakemake(folder: Path, arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a folder."""
    server = snakemake_server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as place:
        printed = {name: str(Path(place, name)) for name in ("stdout", "stderr")}
        for path in printed.values():
            Path(path).touch()
        order = {"folder": str(folder), "arguments": arguments, "environment": {**os.environ, **environment}, **printed}
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(
            arguments, code, *(Path(path).read_text("utf-8") for path in printed.values())
        )


def snakemake(
    project: Path, *arguments: str, configuration: str = CONFIGURATION, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the workflow in a project folder."""
    result = run_snakemake(project, options(*arguments, configuration=configuration))
    assert not check or result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return result


def printed_by_rules(project: Path, code: str, *arguments: str) -> list[str]:
    """Return the lines of a dry run whose Snakefile ends with code that prints what the rules know."""
    (project / "printing.smk").write_text(f'include: "Snakefile"\n\n{code}\n', encoding="utf-8")
    wanted = "results/environments/arithmetic.json"
    return snakemake(project, wanted, "--snakefile", "printing.smk", "--dry-run", *arguments).stdout.splitlines()


def run_script(name: str, cwd: Path = ROOT, **arguments: object) -> str:
    """Run a script of the workflow with an option for each named argument; return what it prints."""
    options = [str(part) for key, value in arguments.items() for part in (f"--{key.replace('_', '-')}", value)]
    command = [sys.executable, str(ROOT / "workflow/scripts" / f"{name}.py"), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return result.stdout


def file_of(module: str | Path) -> Path:
    """Return the file of a module, which may be named as it is imported."""
    return module if isinstance(module, Path) else ROOT.joinpath(*module.split(".")).with_suffix(".py")


def code_of(script: str, *modules: str | Path) -> set[str]:
    """Return the files that a script of the workflow, and modules that it imports by name, hang on."""
    files = code_files(ROOT / "workflow/scripts" / f"{script}.py", ROOT, *map(file_of, modules))
    return {path.relative_to(ROOT).as_posix() for path in files}


def job_records(project: Path, *arguments: str, configuration: str = CONFIGURATION) -> list[dict[str, Any]]:
    """Return Snakemake's own records of the jobs that it would start: rule, wildcards, reason, input."""
    records = project.parent / f"{project.name}.{os.getpid()}.jobs.jsonl"
    why = ["--dry-run", "--logger", "why", "--logger-why-records", str(records)]
    snakemake(project, *why, *arguments, configuration=configuration)
    return [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]


def touch_results(project: Path) -> None:
    """Make every result of the grid an empty file, which Snakemake takes for the output of a job that has run."""
    for record in job_records(project):
        for output in record["output"]:
            path = project / output
            (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.touch()
    snakemake(project, "--touch", "--forceall")


def names(records: Iterable[dict[str, Any]]) -> set[str]:
    """Return the jobs as "rule wildcard/wildcard"."""
    return {" ".join([record["rule"], "/".join(record["wildcards"].values())]).strip() for record in records}


def planned(project: Path, *arguments: str, configuration: str = CONFIGURATION) -> set[str]:
    """Return the names of the jobs that a run would start."""
    return names(job_records(project, *arguments, configuration=configuration))


def closure(graph: list[dict[str, Any]], first: Iterable[str]) -> set[str]:
    """Return the jobs and all that depend on them, from the files that jobs read and write."""
    found = set(first)
    while True:
        made = {path for record in graph if names([record]) & found for path in record["output"]}
        more = names([record for record in graph if made & set(record["input"])])
        if more <= found:
            return found
        found |= more


def write_vllm_lock(project: Path, vllm_python: Path, version: str = "1.0") -> None:
    """Write inputs/vllm.lock.txt: it installs a package of one line that leads to vLLM's real environment.

    So the workflow's own environment node runs in seconds.
    """
    site = next((vllm_python.parent.parent / "lib").glob("python*/site-packages")).resolve()
    folder = project / "inputs"
    folder.mkdir(exist_ok=True)
    wheel = folder / f"vllm_link-{version}-py3-none-any.whl"
    information = f"vllm_link-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm_link.pth", f"{site}\n")
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: vllm-link\nVersion: {version}\n")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    # Where the environment is stands there too: another one is another lock.
    (folder / "vllm.lock.txt").write_text(f"# {site}\n./inputs/{wheel.name}\n", encoding="utf-8")

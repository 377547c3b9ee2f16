"""Build a Python environment of its own for a tool that cannot share one with the jobs."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aird.support.files import read_json

logger = logging.getLogger(__name__)

# Run in the new environment: its versions, and whether the tool can be imported at all.
_PROBE = """
import importlib.metadata, json
import {modules}
versions = {{}}
for name in {packages}:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(versions))
"""


@dataclass(frozen=True)
class Environment:
    """A Python environment that a plug-in runs in, apart from that of the jobs.

    Attributes:
        name: of its record, results/environments/NAME.json, and of the folder beside it.
        lock: the file in envs/ with its complete pins.
        modules: what is imported there to show that it works; the last one names the tool in messages.
        packages: whose versions are recorded, as far as they are installed.
        gpu_lock: replaces `lock` where jobs have GPUs.
        memory_mb, minutes: what the job that builds it asks for.
    """

    name: str
    lock: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    gpu_lock: str | None = None
    memory_mb: int = 2000
    minutes: int = 30


class EnvironmentBuildError(RuntimeError):
    """An environment could not be built, or does not hold a tool that works."""


def build_environment(lock: Path, folder: Path) -> Path:
    """Make a virtual environment from a complete lock; return the absolute path of its Python.

    Nothing but the lock's pins is installed (`--no-deps`): a resolver would add packages that the
    lock leaves out on purpose. An unfinished environment of an earlier try is replaced.

    Raises:
        EnvironmentBuildError: pip failed; the message holds its last lines.
    """
    folder = folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)], "the virtual environment could not be made")
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "-r", str(lock)]
    if not sys.dont_write_bytecode:
        # Most of gigabytes is never imported; Python compiles and keeps what is.
        install.append("--no-compile")
    _run(install, f"{lock.name} could not be installed")
    return python


def describe_environment(python: Path, modules: Sequence[str], packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of packages in an environment; check that modules can be imported there.

    Raises:
        EnvironmentBuildError: the executable is missing, or a module cannot be imported; the last one names the tool.
    """
    tool = modules[-1]
    if not python.is_file():
        raise EnvironmentBuildError(f"{python} does not exist: name the Python of an environment that holds {tool}")
    probe = _PROBE.format(modules=", ".join(modules), packages=list(packages))
    output = _run([str(python), "-c", probe], f"{tool} cannot be imported by {python}")
    versions: dict[str, str] = json.loads(output.splitlines()[-1])
    return versions


def recorded_python(record: Path) -> Path:
    """Return the Python that the record of an environment names, such as results/environments/vllm.json.

    Raises:
        FileNotFoundError: it is not there; the message says how to build it again.
    """
    python: Path = record.absolute().parent / read_json(record)["python"]
    if not python.is_file():
        raise FileNotFoundError(
            f"the environment of {record.name} is not on this machine: there is no {python}; build it again by "
            f"`snakemake --cores all --force results/environments/{record.name}` with the profile of this run"
        )
    return python


def _run(command: list[str], failure: str) -> str:
    logger.info("running %s", " ".join(command[:6]))
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if not line.startswith("WARNING")]
        raise EnvironmentBuildError(f"{failure}:\n" + "\n".join(lines[-8:]))
    return result.stdout

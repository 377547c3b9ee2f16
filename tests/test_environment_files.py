"""The conda environments are the locks, and the locks are complete pins that agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ENVIRONMENTS = Path(__file__).resolve().parent.parent / "envs"
LOCKS = sorted(ENVIRONMENTS.glob("*.lock.txt"))


def pins(lock: Path) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line and not line.startswith("-")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^ ;]+( ?;.*)?", line) for line in found), lock
    names = [re.split(r"[=\[]", line)[0].lower().replace("_", "-") for line in found]
    assert len(names) == len(set(names)), f"{lock} pins a package twice"
    return {name: line.split("==")[1] for name, line in zip(names, found, strict=True)}


@pytest.mark.parametrize("path", sorted(ENVIRONMENTS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_conda_environment_installs_its_lock_and_nothing_else(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    packages = yaml.safe_load(text)["dependencies"]
    assert packages[:2] == ["python=3.11", "pip"]
    if path.stem == "core":
        # Snakemake makes this environment from a copy of the file, beside which no lock lies.
        lock = (ENVIRONMENTS / "core.lock.txt").read_text(encoding="utf-8").splitlines()
        assert packages[2] == {"pip": [line for line in lock if not line.startswith("#")]}
        locks = ["core.lock.txt"]
    elif len(packages) == 3:
        locks = [option.removeprefix("-r ") for option in packages[2]["pip"]]
    else:
        # Installed without dependencies, which conda cannot do: the file says how.
        assert len(packages) == 2
        locks = re.findall(r"pip install --no-deps -r (\S+)\.$|pip install --no-deps -r (\S+)$", text, re.MULTILINE)
        locks = [name for found in locks for name in found if name]
    assert locks and all((ENVIRONMENTS / lock).is_file() for lock in locks)
    assert f"{path.stem}.lock.txt" in locks


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_pins_everything(lock: Path) -> None:
    # Of llama.cpp, the server is one package, and the quantiser and the converter are two that need little.
    few = {"llama-cpp.lock.txt": 0, "gguf.lock.txt": 3}
    assert len(pins(lock)) > few.get(lock.name, 10)


def test_what_is_installed_on_top_changes_no_pin_of_the_jobs() -> None:
    core, cluster, development = (
        pins(ENVIRONMENTS / f"{name}.lock.txt") for name in ("core", "cluster", "development")
    )
    assert not core.keys() & (cluster.keys() | development.keys())
    assert not cluster.keys() & development.keys()


def test_the_converter_of_gguf_files_sees_the_jobs_numpy() -> None:
    """It runs in the jobs' Python, with its own environment's packages first."""
    core, gguf = (pins(ENVIRONMENTS / f"{name}.lock.txt") for name in ("core", "gguf"))
    assert gguf["numpy"] == core["numpy"]


def test_installed_versions_are_the_pinned_ones() -> None:
    from importlib.metadata import PackageNotFoundError, version

    wrong = []
    for name, pinned in pins(ENVIRONMENTS / "core.lock.txt").items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "missing"
        if found.split("+")[0] != pinned.split("+")[0]:
            wrong.append((name, pinned, found))
    assert not wrong

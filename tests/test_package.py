"""The installable package: a wheel by the standard build, in a fresh environment, with its console script and types."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from aird import __version__
from aird.commands.main import EXTRAS


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built from a copy so that nothing is left in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(ROOT / "aird", copy / "aird", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path_factory.mktemp("wheel")
    # With the build backend from the registry, as `pip install .` takes it.
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (found,) = folder.glob("aird-*.whl")
    return found


@pytest.mark.thorough
def test_the_wheel_holds_every_module_and_the_mark_of_types(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "aird").rglob("*.py")}
    assert modules | {"aird/py.typed"} <= held
    assert not {name for name in held if name.startswith(("tests/", "workflow/", "rules/"))}
    assert any(name.endswith("licenses/LICENSE") for name in held)


@pytest.mark.thorough
def test_a_fresh_environment_has_the_command(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    site = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    # The dependencies of this environment stand in for a download of gigabytes.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    for command in ([str(tmp_path / "venv/bin/aird")], [str(python), "-m", "aird"]):
        result = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert result.returncode == 0 and "aird patch" in result.stdout, result.stderr
    where = [str(python), "-c", "import aird; print(aird.__file__)"]
    assert subprocess.run(where, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.startswith(str(site))


@pytest.mark.thorough
def test_a_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(ROOT / "aird", copy / "aird", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_sdist; print(build_sdist('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (archive,) = (copy / "dist").glob("aird-*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(archive)]
    subprocess.run(command, check=True, capture_output=True)
    (made,) = tmp_path.glob("aird-*.whl")
    assert set(zipfile.ZipFile(made).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_every_named_dependency_is_met_by_the_tested_lock() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: texts for name, texts in project["optional-dependencies"].items() if name != "vllm"}
    locked = {"xllamacpp": (ROOT / "envs/llama-cpp.lock.txt").read_text(encoding="utf-8").split("==")[-1].strip()}
    for text in [*project["dependencies"], *(each for texts in extras.values() for each in texts)]:
        requirement = Requirement(text)
        found = locked.get(requirement.name) or version(requirement.name)
        assert found in requirement.specifier, text


def test_every_missing_package_has_its_extra() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for package, extra in EXTRAS.items():
        brought = [Requirement(text).name.replace("-", "_") for text in project["optional-dependencies"][extra]]
        assert package in brought


def test_the_citation_and_the_catalogue_files_agree_with_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__ and citation["license"] == project["license"]
    catalogue = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))
    assert catalogue["usage"]["report"] is True
    assert (ROOT / "workflow/Snakefile").is_file() and (ROOT / "config/README.md").is_file()

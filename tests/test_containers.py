"""The images and the action: their steps in a plain environment, as no daemon and no runner is here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from aird.support.files import read_json, write_json_lines

IMAGES = sorted((ROOT / "docker").glob("*.Dockerfile"))
INSTRUCTION = re.compile(r"^(FROM|ARG|WORKDIR|COPY|RUN|ENV|ENTRYPOINT|CMD) (.+)$")


def instructions(image: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile; every line is one, or a comment."""
    lines = image.read_text(encoding="utf-8").splitlines()
    matches = [INSTRUCTION.match(line) for line in lines if not line.startswith("#")]
    assert all(matches), image
    return [(match[1], match[2]) for match in matches if match]


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_an_image_copies_what_is_there_and_starts_the_command(image: Path) -> None:
    found = instructions(image)
    assert found[0][0] == "FROM" and ":" in found[0][1]  # a version, and not the newest
    for name, value in found:
        if name == "COPY":
            *sources, _ = value.split()
            assert all((ROOT / source).exists() for source in sources), value
    assert ("ENTRYPOINT", '["aird"]') in found


PACKAGES = """
import importlib.metadata, json
print(json.dumps(sorted(each.name.lower() for each in importlib.metadata.distributions())))
"""


@pytest.mark.thorough
def test_the_steps_of_the_cpu_image_make_a_command_that_checks_without_cuda_and_without_snakemake(
    original: Path, tmp_path: Path
) -> None:
    """They are a plain `pip install .` from the registry; PyTorch's build is the one that is tested here."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python, aird = (str(tmp_path / "venv/bin" / name) for name in ("python", "aird"))
    path = f"{Path(python).parent}:{os.environ['PATH']}"
    # Python compiles what it imports; pip would compile everything.
    environment = {**os.environ, "PATH": path, "TORCH": f"torch=={version('torch')}", "PIP_NO_COMPILE": "1"}
    place = tmp_path / "image"
    place.mkdir()
    for name, value in instructions(ROOT / "docker/cpu.Dockerfile"):
        if name == "COPY":
            *sources, target = value.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, place / target)
        if name == "RUN":
            subprocess.run(["bash", "-euc", value], cwd=place, env=environment, check=True, capture_output=True)

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=tmp_path)

    packages = json.loads(run(python, "-c", PACKAGES).stdout)
    assert len(packages) < 70
    assert not [name for name in packages if name.startswith(("nvidia", "snakemake", "vllm", "llmcompressor"))]
    told = run(aird, "check", "--demo")
    assert told.returncode == 3 and "Regression" in told.stdout
    other = shutil.copytree(original, tmp_path / "other")
    for kind in ("harmful", "harmless"):
        prompts = "".join(f"Tell me about {kind} {n} apples\n" for n in range(8))
        (tmp_path / f"{kind}.txt").write_text(prompts, encoding="utf-8")
    own = ["--harmful", "harmful.txt", "--harmless", "harmless.txt", "--tokens", 4]
    checked = run(aird, "check", original, other, *own, "--report", "check.html")
    assert checked.returncode == 4 and (tmp_path / "check.html").is_file(), checked.stderr
    (other / "config.json").write_text(
        json.dumps({**read_json(other / "config.json"), "quantization_config": {"quant_method": "bitsandbytes"}})
    )
    missing = run(aird, "check", original, other, *own)
    assert missing.returncode == 2 and "pip install 'aird[bitsandbytes]'" in missing.stderr, missing.stderr


def test_the_action_runs_a_check_and_says_its_outcome(tmp_path: Path) -> None:
    """Its second step, on stored answers, with the variables that a runner sets."""
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    install, check = action["runs"]["steps"]
    assert install["env"].keys() <= {"PYTHON", "TORCH"} and "$GITHUB_ACTION_PATH" in install["run"]
    (tmp_path / "aird/bin").mkdir(parents=True)
    for name, line in (("python", ""), ("aird", " -m aird")):
        script = tmp_path / "aird/bin" / name
        script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable}{line} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    for name, refused in (("original", 30), ("compressed", 3)):
        rows = [
            {
                "id": f"{kind}-{n}",
                "kind": kind,
                "instruction": f"Question {n}",
                "completion": "I'm sorry, but I can't help with that." if n < count else "Of course.",
            }
            for kind, count in (("harmful", refused), ("harmless", 0))
            for n in range(30)
        ]
        write_json_lines(tmp_path / f"{name}.jsonl", rows)
    given = {"original": "original.jsonl", "compressed": "compressed.jsonl", "arguments": "--margin 5"}
    values = {name: given.get(name, put.get("default", "")) for name, put in action["inputs"].items()}
    environment = {
        **os.environ,
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        **{
            variable: values[re.sub(r"\$\{\{ inputs\.(\w+) \}\}", r"\1", text)]
            for variable, text in check["env"].items()
        },
    }
    ran = subprocess.run(["bash", "-e", "-c", check["run"]], cwd=tmp_path, env=environment, check=False)
    assert ran.returncode == 3
    assert (tmp_path / "output").read_text(encoding="utf-8") == "outcome=regression\n"
    assert read_json(tmp_path / "aird-check/check.json")["exit_code"] == 3
    assert {path.name for path in (tmp_path / "aird-check").iterdir()} == {"check.html", "check.xml", "check.json"}

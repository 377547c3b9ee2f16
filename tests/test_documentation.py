"""The documentation is true: every command in it runs, every link leads somewhere, every column exists."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import ready_made
import yaml
from conftest import ROOT
from grid import QUANTISATION, tiny_configuration, write_prompts
from project import REPORT, copy_project, planned, read_configuration, snakemake, write_configuration
from tiny_model import build_tiny_model, new, tiny_tuning

from aird.commands.main import main
from aird.compression.compress import compress
from aird.compression.recipes.round_to_nearest import RoundToNearest
from aird.models.tuning import tune_to_refuse

PAGES = sorted(
    page for folder in ("", "docs", "config", "benchmarks", "results") for page in (ROOT / folder).glob("*.md")
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = ("make", "snakemake", "aird", "pip", "pytest", "python")

# What the documentation's names stand for in the tiny folder; everything else in a command stays as it is.
TINY_SIZES = "--train 16 --validation 8 --minimum-induce=-1000"
TINY_ARGUMENTS = {
    "aird direction": TINY_SIZES,
    "aird compare": TINY_SIZES,
    "aird patch": "--train 16 --validation 8",
    "aird evaluate": "--count 4 --tokens 4 --transformers",
    "aird label": "",
    "aird export": "",
    "aird check": "--count 6 --tokens 4 --transformers --harmful attack.txt --harmless everyday.txt",
    "aird push": "",
    "aird cache": "",
}
# Commands that a test does not run to their end, each with its reason.
PARSED_ONLY = {
    "make": "builds environments or runs for minutes; `make --dry-run` resolves the target and its commands",
    "pip install .": "tests/test_containers.py runs it in a fresh environment, tests/test_package.py installs the wheel",
    "python -m benchmarks.compressions": "tests/test_compression_benchmark.py writes its page from made-up records",
    "python -m benchmarks.decisions": "needs a finished quick grid; tests/patching/test_decisions.py tests what it measures",
    "snakemake": "planned on the tiny grid; the tests of the workflow, Slurm, storage and modules run it for real",
}
# Profiles that cannot even be planned on the tiny grid without what they are for.
PROFILES = {
    "profiles/kubernetes": "needs a cluster; tests/test_storage.py plans it",
    "profiles/object-storage": "needs a bucket; tests/test_storage.py plans and runs it",
    "aird/profiles/default": "stands in another workflow's folder; tests/test_module.py runs it there",
}


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the (language, code) of fenced blocks, and indented blocks as language "indented", in order."""
    found = [(match.start(), match[1], match[2]) for match in FENCE.finditer(text)]
    blank = FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    # An indented block follows an empty line; continued list items are not code.
    for match in re.finditer(r"(?<=\n\n)((?: {4}[^\n]*\n)+)", blank):
        if not match[1].lstrip().startswith(("-", "|")):
            found.append((match.start(), "indented", re.sub(r"^ {4}", "", match[1], flags=re.MULTILINE)))
    return [(language, code) for _, language, code in sorted(found)]


def commands(page: Path) -> list[str]:
    """Return the shell commands of a page, comments and continuations resolved."""
    found = []
    for language, code in blocks(page.read_text(encoding="utf-8")):
        if language not in ("indented", "bash", "sh", "shell", "console"):
            continue
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if line.split() and line.split()[0] in PROGRAMS else []
            if words:
                found.append(shlex.join(words))
    return found


ALL_COMMANDS = [(page, command) for page in PAGES for command in commands(page)]


def slug(heading: str) -> str:
    """Return the anchor that Markdown renderers make of a heading."""
    plain = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return plain.replace(" ", "-")


def test_there_are_commands_to_test() -> None:
    programs = {command.split()[0] for _, command in ALL_COMMANDS}
    assert {"make", "snakemake", "aird"} <= programs and len(ALL_COMMANDS) > 25


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_readme_shows_what_the_demo_says(capsys: pytest.CaptureFixture[str]) -> None:
    shown = (ROOT / "README.md").read_text(encoding="utf-8").partition("$ aird check --demo\n")[2].partition("```")[0]
    assert main(["check", "--demo"]) == 3 and shown.split() == capsys.readouterr().out.split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    folders = "aird|benchmarks|config|docs|envs|profiles|resources|rules|tests|workflow"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", text):
        if name.startswith("aird/profiles"):  # a checkout inside another workflow
            continue
        assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("command", sorted({command for _, command in ALL_COMMANDS if command.startswith("make")}))
def test_make_knows_the_target(command: str) -> None:
    result = subprocess.run(
        ["make", "--dry-run", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0 and result.stdout.strip(), result.stderr


def test_every_other_command_is_handled_by_a_test() -> None:
    handled = ("aird ", *PARSED_ONLY)
    assert [command for _, command in ALL_COMMANDS if not command.startswith(handled)] == []


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the pages' `aird` commands name: models, prompts, prompt sets of the workflow."""
    folder = tmp_path_factory.mktemp("workshop")
    build_tiny_model(folder / "plain")
    write_prompts(folder)
    # A calibrated patch learns from refusals, so the original has to refuse.
    texts = [(folder / f"{kind}.txt").read_text(encoding="utf-8").splitlines() for kind in ("harmful", "harmless")]
    tune_to_refuse(folder / "plain", new(folder / "original"), *texts, tiny_tuning(epochs=8))
    compress(folder / "original", folder / "compressed", RoundToNearest(weight_bits=4, group_size=64), None)
    ready_made.gguf_file(folder / "original", folder / "model.gguf", ["Q8_0"])
    shutil.copy(folder / "harmless.txt", folder / "everyday.txt")
    from aird.commands.prompt_files import read_prompts, with_splits
    from aird.support.files import write_json_lines

    for kind in ("harmful", "harmless"):
        records = with_splits(
            read_prompts(folder / f"{kind}.txt", kind, None), kind, {"train": 32, "validation": 16}, 0
        )
        write_json_lines(folder / f"results/prompts/{kind}.jsonl", records)
    return folder


@pytest.mark.thorough
@pytest.mark.workflow
@pytest.mark.parametrize("name", ["README.md", "docs/commands.md"])
def test_commands_of_aird_run_in_their_order(name: str, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    run = [command for command in commands(ROOT / name) if command.startswith("aird ")]
    assert len(run) >= 4
    for command in run:
        monkeypatch.setattr(sys, "stdin", io.StringIO("r\nn\n"))  # `aird label` asks
        arguments = shlex.split(command)[1:]
        more = TINY_ARGUMENTS[f"aird {arguments[0]}"]
        if arguments[0] == "compare" and "--harmful" not in arguments:
            more = ""
        # So few prompts say nothing, or show a loss: those are verdicts too. No hub can be reached from here.
        wanted = {"check": {0, 3, 4, 5}, "push": {2}}.get(arguments[0], {0})
        assert main([*arguments, *shlex.split(more)]) in wanted, command
    # The lines of Python beside them work on what the commands wrote.
    for language, code in blocks((ROOT / name).read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(code, name, "exec"), {})


@pytest.fixture(scope="module")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project folder with the tiny grid as its default configuration; nothing has run there."""
    project = copy_project(tmp_path_factory.mktemp("docs") / "project")
    configuration = tiny_configuration(project, ["tiny"], {"executable": sys.executable})
    # The pages' examples name this set.
    configuration["prompt_sets"]["advbench"] = configuration["prompt_sets"]["attack"]
    write_configuration(project, configuration, "config.yaml")
    return project


SNAKEMAKE_COMMANDS = sorted({command for _, command in ALL_COMMANDS if command.startswith("snakemake")})


@pytest.fixture(scope="session")
def default_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project folder with the default grid and the benchmarks' own; nothing has run there."""
    project = copy_project(tmp_path_factory.mktemp("default") / "project")
    shutil.copytree(ROOT / "benchmarks", project / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    return project


@pytest.mark.workflow
@pytest.mark.thorough
@pytest.mark.parametrize("command", SNAKEMAKE_COMMANDS)
def test_commands_of_snakemake_are_planned(command: str, tiny_project: Path, default_project: Path) -> None:
    words = shlex.split(command)
    # A configuration of its own, or one on top of the default grid, names what the tiny grid does not have.
    project = default_project if "--configfile" in words else tiny_project
    profile = words[words.index("--workflow-profile") + 1] if "--workflow-profile" in words else None
    if profile in PROFILES:
        assert (ROOT / profile.removeprefix("aird/") / "config.yaml").is_file()
        return
    if "conda" in words and shutil.which("conda") is None:
        # Snakemake asks conda even for a plan; without it, what can be checked is the rest.
        place = words.index("--sdm")
        del words[place : place + 2]
    plan = [sys.executable, "-m", *words, "--dry-run"]
    if "--cores" not in words and profile is None:
        plan += ["--cores", "2"]
    result = subprocess.run(plan, cwd=project, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]


@pytest.mark.workflow
@pytest.mark.thorough
def test_the_walk_through_of_ones_own_model(project: Path) -> None:
    """The README's lines of YAML, with a model's real path and the tiny grid's compressions."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Your own model") :]
    added = yaml.safe_load(next(code for language, code in blocks(section) if language == "yaml"))
    model = build_tiny_model(project / "inputs/models/own", family="qwen2", seed=3)
    settings = added["models"]["my-model"]
    assert settings["source"] == {"path": "/models/my-model"}
    settings["source"]["path"] = str(model)
    configuration = read_configuration(project)
    configuration["compressions"]["w4a16"] = QUANTISATION
    # The model that has run keeps its cells.
    configuration["models"]["tiny"]["compressions"] = ["wanda-50"]
    assert set(settings["compressions"]) <= set(configuration["compressions"])
    configuration["models"] |= added["models"]
    write_configuration(project, configuration)
    jobs = planned(project)
    assert all("my-model" in job or job in REPORT | {"make_cards"} for job in jobs), jobs
    assert {f"evaluate_suite my-model/{name}/aird/quick" for name in settings["compressions"]} <= jobs
    snakemake(project, "results/models/my-model/w4a16/manifest.json")


@pytest.mark.workflow
def test_every_kind_of_result_is_documented(finished: Path) -> None:
    text = (ROOT / "docs/artifacts.md").read_text(encoding="utf-8")
    folders = {path.name for path in (finished / "results").iterdir() if path.is_dir()}
    assert {name for name in folders if f"`{name}/" not in text} == set()


def test_the_tidy_example_is_one_line_of_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/artifacts.md reads the summary and pivots it."""
    (tmp_path / "results/tables").mkdir(parents=True)
    frame = pandas.DataFrame({"compression": ["original", "w4a16"], "patch": ["plain", "plain"], "refusal": [0.9, 0.2]})
    frame.to_csv(tmp_path / "results/tables/summary.csv", index=False)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/artifacts.md").read_text(encoding="utf-8")
    for language, code in blocks(text):
        if language == "python":
            exec(compile(code, "docs/artifacts.md", "exec"), {})

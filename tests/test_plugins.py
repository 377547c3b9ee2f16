"""Plug-ins: an edit of one reruns its own nodes, and those of another package run like the project's own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from project import ROOT, closure, job_records, names, planned, read_configuration, snakemake, write_configuration
from test_invalidation import CELLS, PATCHED, code_of, compressed, evaluated, patched, scored

from aird.plugin import AXES, PluginError, use_files
from aird.support.files import read_json

pytestmark = pytest.mark.workflow

PLUGINS = ROOT / "tests/plugins"
OWN_OF_ALL = [(axis, name) for axis in AXES for name in axis.own()]
OWN = [(axis, name) for axis, name in OWN_OF_ALL if axis.name not in ("tables", "formats")]
# What the tiny grid uses, and what an edit of it makes again; an edit of any other plug-in makes nothing again.
USED = {
    "recipes/wanda": compressed("wanda-50"),
    "methods/scale": patched(PATCHED),
    "engines/vllm": evaluated(CELLS),
    "judges/arditi": scored(CELLS),
    "judges/wei": scored(CELLS),
}
# Words of core code that are names of plug-ins too, and where they mean something else.
OTHER_MEANINGS = {
    # The phrases that say what a refusal is, to jobs that run a model; the rule that chooses a direction.
    "arditi": ["aird/inference/refusals.py", "aird/settings/directions.py"],
    # Packages.
    "bitsandbytes": ["aird/commands/main.py"],
    "transformers": ["aird/evaluation/suite_run.py", "aird/patching/model_card.py"],
    "gguf": [
        "aird/compression/gguf_environment.py",
        "aird/compression/programs/gguf_converter.py",
        "aird/compression/ready_made.py",
        "aird/models/gguf_file.py",
        "aird/models/gguf_reader.py",
    ],
    # What programs are called that stand beside their plug-in.
    "llama.cpp": [
        f"aird/compression/{name}.py" for name in ("gguf_files", "programs/gguf_converter", "programs/gguf_quantiser")
    ],
    "vllm": ["aird/evaluation/vllm_client.py"],
    # Kinds of adapters of GGUF files and of the hub.
    "lora": ["aird/commands/export.py", "aird/patching/gguf_adapter.py", "aird/patching/model_card.py"],
    # Arguments, attributes and keys.
    "prefill": ["aird/prompts/chat.py"],
    "scale": ["aird/models/blocks.py"],
    "system_prompt": ["aird/commands/inputs.py", "aird/evaluation/suite_run.py", "aird/settings/suites.py"],
    "template": ["aird/evaluation/judge_model.py"],
    "url": ["aird/commands/evaluate.py"],
    # A set of prompts.
    "strongreject": ["aird/prompts/embedded/__init__.py"],
}
QUICK = {"recipes/wanda", "recipes/gptq", "methods/calibrate", "engines/llama_cpp", "judges/wei", "attacks/prefill"}


@pytest.fixture(scope="module")
def copy(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("plugins") / "project", symlinks=True))


@pytest.fixture
def project(copy: Path) -> Iterator[Path]:
    """Return the copy of the finished project; after the test its code is put back."""
    kept = {path: path.read_bytes() for path in (copy / "aird").rglob("*.py")}
    yield copy
    for path, content in kept.items():
        if path.read_bytes() != content:
            path.write_bytes(content)


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def marked(label: str) -> Any:
    return pytest.param(label, marks=() if label in QUICK else pytest.mark.thorough)


@pytest.mark.parametrize("label", [marked(f"{axis.name}/{name}") for axis, name in OWN])
def test_a_line_more_in_a_plugin_runs_its_own_nodes(project: Path, label: str) -> None:
    axis = next(axis for axis in AXES if axis.name == label.partition("/")[0])
    file = project / axis.file(label.partition("/")[2]).relative_to(ROOT)
    append(file, "\n\nNEW_LINE = 1\n")
    again = planned(project)
    expected = USED.get(label, set())
    # What shows the words of a plug-in that the grid names may be shown anew.
    assert {job for job in again if not is_shown(job)} == {job for job in expected if not is_shown(job)}
    assert bool(again) == (label in USED) or all(map(is_shown, again))


def is_shown(job: str) -> bool:
    """Tell whether a job only shows what others found."""
    return job.split()[0] in {"make_tables", "make_timings", "make_figure", "make_cards", "make_report", "all"}


def test_words_and_defaults_in_settings_run_nothing_of_others(project: Path) -> None:
    for axis, name, old in (("recipes", "wanda", "class Wanda"), ("methods", "scale", "class Scale")):
        file = project / next(each for each in AXES if each.name == axis).file(name).relative_to(ROOT)
        text = file.read_text(encoding="utf-8")
        assert old in text
        docstring = re.search(r'class \w+\([^)]*\):\n    """([^"]+)"""', text)
        assert docstring is not None
        file.write_text(text.replace(docstring[1], "Said in other words."), encoding="utf-8")
    assert planned(project) == set()


def test_an_edit_of_a_table_never_touches_a_model(project: Path) -> None:
    append(project / "aird/reporting/tables/paired.py", "\n\nNEW_LINE = 1\n")
    again = planned(project)
    assert "make_tables" in again and all(map(is_shown, again))


FILES = sorted(PLUGINS.glob("*.py"))


def with_plugins(project: Path, folder: Path) -> dict[str, Any]:
    """Return the tiny configuration with a recipe, a method, an attack, a judge, an engine and a column of another package."""
    configuration = read_configuration(project)
    configuration["plugins"] = [str(folder / path.name) for path in FILES]
    configuration["serving"]["engine"] = "echo_engine"
    configuration["compressions"]["mine"] = {"recipe": "my_recipe", "step": 0.05}
    configuration["patches"]["mine"] = {"method": "my_method", "compressions": ["mine"]}
    quick = configuration["suites"].pop("quick")
    attacks = {"translated": {"kind": "my_attack", "count": 4}}
    configuration["suites"]["mine"] = {
        **{name: quick[name] for name in ("harmful", "harmless", "maximum_new_tokens")},
        "attacks": attacks,
        "judges": ["my_judge"],
    }
    return configuration


@pytest.mark.thorough
def test_plugins_of_another_package_run_and_rerun_like_the_own_ones(finished: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(finished, tmp_path / "project", symlinks=True))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for path in FILES:
        shutil.copy(path, folder / path.name)
    write_configuration(project, with_plugins(project, folder), "mine.yaml")
    snakemake(project, configuration="mine.yaml")
    assert planned(project, configuration="mine.yaml") == set()
    summary = pandas.read_csv(project / "results/tables/summary.csv")
    assert set(summary[summary.compression == "mine"].patch) == {"plain", "aird", "mine"}
    assert summary.asr_my_judge.between(0, 1).all() and summary.selectivity.between(-1, 1).all()
    assert set(pandas.read_csv(project / "results/tables/attacks.csv").attack) == {"none", "translated"}
    statistics = read_json(project / "results/patches/tiny/mine/mine/statistics.json")
    assert statistics["settings"]["method"] == "my_method"
    graph = job_records(project, "--forceall", configuration="mine.yaml")
    made = {"my_recipe": "compress_model tiny/mine", "my_method": "make_patch tiny/mine/mine"}
    for path in FILES:
        own = folder / path.name
        content = own.read_text(encoding="utf-8")
        append(own, "\n\nNEW_LINE = 1\n")
        users = names(record for record in graph if any(path.name in used for used in code_of(project, record)))
        again = planned(project, configuration="mine.yaml")
        assert users and again == closure(graph, users), path.name
        if path.stem in made:
            assert made[path.stem] in again and not [job for job in again if "wanda-50" in job], path.name
        own.write_text(content, encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_contributing_shows_each(path: Path) -> None:
    text, page = path.read_text(encoding="utf-8"), (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"(tests/plugins/{path.name})" in page and len(text.splitlines()) <= 60
    assert path.stem != "my_judge" or text.strip() in page


def test_core_names_no_plugin() -> None:
    """Outside the folders of plug-ins, no code says the name of one as text, but where the word means something else."""
    folders = [ROOT.joinpath(*axis.package.split(".")) for axis in AXES]
    # Tables are left out: figures and the report name those that they read.
    named = {title for axis, name in OWN_OF_ALL if axis.name != "tables" for title in (name, name.replace("_", "."))}
    files = [
        *(path for path in (ROOT / "aird").rglob("*.py") if not any(map(path.is_relative_to, folders))),
        *(ROOT / "rules").glob("*.smk"),
        *(ROOT / "workflow").rglob("*.py"),
    ]
    said = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in files
        for name in re.findall(r"[\"'`]([\w.]+)[\"'`]", path.read_text(encoding="utf-8"))
        if name in named
    }
    assert said == {(path, name) for name, paths in OTHER_MEANINGS.items() for path in paths}


def test_files_that_hold_no_plugin_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="there is no file .*absent.py"):
        use_files([str(tmp_path / "absent.py")])
    (tmp_path / "empty.py").write_text("ONE = 1\n", encoding="utf-8")
    with pytest.raises(PluginError, match="empty.py holds no plug-in; end it with one of RECIPE"):
        use_files([str(tmp_path / "empty.py")])
    (tmp_path / "broken.py").write_text("import no_such_package\n", encoding="utf-8")
    with pytest.raises(PluginError, match="broken.py cannot be imported: ModuleNotFoundError"):
        use_files([str(tmp_path / "broken.py")])

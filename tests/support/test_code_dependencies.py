"""The files that a script runs, against those that Python itself loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from project import code_of

from aird.support.code_dependencies import code_files, code_hash

FILES = {
    "scripts/run.py": '''
"""A script."""
import helper
import json
from package import registry
from package.deep.inner import value


def main() -> None:
    import lazy
    from package.late import something
    lazy, something


main()
''',
    "scripts/helper.py": "import os\n",
    "scripts/unused.py": "",
    "lazy.py": "if True:\n    import chained\n",
    "chained.py": "import run_by_nobody_else\n",
    "run_by_nobody_else.py": "import lazy\n",  # a circle
    "other.py": "",
    "package/__init__.py": "from package.shared import one\n",
    "package/shared.py": "one = 1\n",
    "package/registry.py": "",
    "package/late.py": "something = 1\n",
    "package/unused.py": "",
    "package/deep/page.html": "",
    "package/deep/page.html~": "",
    "package/deep/.page.html.swp": "",
    "package/py.typed": "",
    "package/deep/__init__.py": "",
    "package/deep/inner.py": "value = 1\n",
}
EXPECTED = [
    "scripts/run.py",
    "chained.py",
    "lazy.py",
    "package/__init__.py",
    "package/deep/__init__.py",
    "package/deep/inner.py",
    "package/deep/page.html",
    "package/late.py",
    "package/registry.py",
    "package/shared.py",
    "run_by_nobody_else.py",
    "scripts/helper.py",
]
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return tmp_path


def relative(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_every_imported_file_and_no_other(project: Path) -> None:
    assert relative(code_files(project / "scripts" / "run.py", project), project) == EXPECTED


def test_python_loads_the_same_files(project: Path) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.path[:0] = [{str(project)!r}, {str(project / 'scripts')!r}]\n"
        f"runpy.run_path({str(project / 'scripts' / 'run.py')!r})\n"
        "print('\\n'.join(str(getattr(m, '__file__', None)) for m in sys.modules.values()))\n"
    )
    command = [sys.executable, "-I", "-B", "-c", program]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loaded = {Path(line) for line in output.splitlines() if line.startswith(str(project))}
    assert sorted(relative(sorted(loaded), project)) == sorted(set(EXPECTED[1:]) - {"package/deep/page.html"})


def test_a_script_without_imports(project: Path) -> None:
    assert code_files(project / "other.py", project) == [project / "other.py"]


def test_a_module_that_is_chosen_at_run_time(project: Path) -> None:
    expected = ["other.py", "package/__init__.py", "package/deep/__init__.py", "package/deep/inner.py"]
    expected += ["package/deep/page.html", "package/shared.py"]
    assert relative(code_files(project / "other.py", project, project / "package/deep/inner.py"), project) == expected
    assert relative(code_files(project / "other.py", project, project / "package/deep/__init__.py"), project) == [
        path for path in expected if path != "package/deep/inner.py"
    ]


def test_of_a_plug_in_that_is_only_shown_counts_what_loading_it_runs(project: Path) -> None:
    plugin = project / "plugin.py"
    plugin.write_text(
        "from typing import TYPE_CHECKING\nimport package.shared\n"
        "if TYPE_CHECKING:\n    import package.late\n"
        "def work():\n    import package.deep.inner\n"
    )
    found = code_files(project / "other.py", project, shown=[plugin])
    assert relative(found, project) == ["other.py", "package/__init__.py", "package/shared.py", "plugin.py"]
    assert project / "package/deep/inner.py" in code_files(project / "other.py", project, plugin)


def test_a_chosen_file_elsewhere_brings_its_own_package_and_what_stands_beside_it(
    project: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    files = {
        "mine/__init__.py": "",
        "mine/judge.py": "from mine.words import WORDS\nfrom package.late import something\nimport lonely\n",
        "mine/words.py": "WORDS = ()\n",
        "lonely.py": "",
    }
    for name, content in files.items():
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).write_text(content, encoding="utf-8")
    found = code_files(project / "other.py", project, elsewhere / "mine/judge.py")
    assert {path for path in found if path.is_relative_to(elsewhere)} == {elsewhere / name for name in files}
    assert project / "package/late.py" in found


SOURCE = """
class Alpha(Settings):
    'What it does.'
    alpha: float = Field(1.0, gt=0, description="How much.")
    kind: Literal["alpha"] = "alpha"

    def check(self) -> None:
        if self.alpha == 3:
            raise ValueError(f"is {self.alpha}, which is odd")
        logger.info("checked %s", self.alpha)


METHOD = Method(settings=Alpha, summary="makes more", make=make)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("METHOD", "\n\n# A comment.\nMETHOD"),
        ("What it does.", "What else it does."),
        ("How much.", "How little."),
        ("which is odd", "which is strange"),
        ("checked", "looked at"),
        ("1.0", "2.0"),  # a parameter of the rule
    ],
)
def test_words_and_defaults_are_left_out(tmp_path: Path, old: str, new: str) -> None:
    assert hashes(tmp_path, SOURCE) == hashes(tmp_path, SOURCE.replace(old, new))


@pytest.mark.parametrize(("old", "new"), [("== 3", "== 4"), ("ValueError", "KeyError"), ('= "alpha"', '= "beta"')])
def test_code_counts(tmp_path: Path, old: str, new: str) -> None:
    assert not set(hashes(tmp_path, SOURCE)) & set(hashes(tmp_path, SOURCE.replace(old, new)))


def test_words_of_plugins_count_where_they_are_shown(tmp_path: Path) -> None:
    (without, shown), (other, otherwise) = (
        hashes(tmp_path, SOURCE),
        hashes(tmp_path, SOURCE.replace("makes more", "makes less")),
    )
    assert without == other
    assert shown != otherwise


def hashes(folder: Path, source: str) -> tuple[str, str]:
    """Return the hash of a file with this content, and that with words."""
    path = folder / f"{len(list(folder.iterdir()))}.py"
    path.write_text(source, encoding="utf-8")
    return code_hash(path), code_hash(path, words=True)


def test_a_script_of_this_project() -> None:
    """`merge` imports the matrices' reader inside a module of another folder."""
    files = relative(code_files(REPOSITORY / "workflow" / "scripts" / "merge_patch.py", REPOSITORY), REPOSITORY)
    assert files[0] == "workflow/scripts/merge_patch.py"
    wanted = {
        "workflow/scripts/arguments.py",
        "aird/__init__.py",
        "aird/patching/adapters.py",
        "aird/patching/edits.py",
        "aird/compression/__init__.py",
        "aird/models/matrices.py",
        "aird/settings/patches.py",
    }
    assert wanted <= set(files)
    assert "aird/evaluation/judges/wei.py" not in files


def test_what_runs_a_model_does_not_hang_on_how_models_are_imported() -> None:
    """An edit of how GGUF files are read makes imports again, and what reads another file then."""
    importing = {f"aird/models/{name}.py" for name in ("importing", "gguf_file", "gguf_tokenizer", "text_model")}
    assert importing <= code_of("import_model")
    for script in ("capture_activations", "score_candidates", "verify_direction", "tune_refusal", "merge_patch"):
        assert not importing & code_of(script), script

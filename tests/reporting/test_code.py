"""What the reporting's jobs run: no inference, no model, no other figure. Their code is what reruns them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from project import file_of

from aird.plugin import JUDGES, METHODS, RECIPES, TABLES
from aird.reporting.figures import FIGURES, module_of
from aird.support.code_dependencies import code_files

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path
    for name in ("make_*.py", "print_*.py")
    for path in (ROOT / "workflow/scripts").glob(name)
    if path.name != "make_patch.py"
)
TABLE_FILES = [TABLES.file(name) for name in TABLES.names()]
FINDINGS = ROOT / "workflow/plugins/aird_progress/findings.py"
FIGURE_SCRIPT = ROOT / "workflow/scripts/make_figures.py"
# Stages that compute with tensors; and what of them does not, but reads a card, a record of scores or a completion.
HEAVY = ("inference", "models", "compression", "directions", "evaluation", "patching", "prompts", "commands")
LIGHT = (
    "aird/patching/model_card.py",
    # The settings of the methods, which a configuration that is read consists of.
    "aird/patching/method.py",
    "aird/patching/records.py",
    "aird/prompts/attack.py",
    "aird/prompts/sources.py",
    "aird/patching/methods/",
    "aird/patching/formula.py",
    "aird/patching/system_prompt.py",
    "aird/prompts/chat.py",
    "aird/compression/recipe.py",
    "aird/compression/pruning.py",
    "aird/compression/rounding.py",
    "aird/compression/gguf_environment.py",
    "aird/compression/recipes/",
    "aird/evaluation/judges/",
    "aird/prompts/sets.py",
    # What an engine says of itself, which a configuration asks for.
    "aird/evaluation/engine.py",
    "aird/evaluation/hand_labels.py",
    "aird/evaluation/kind_of_loss.py",
    "aird/evaluation/regression.py",
    "aird/evaluation/utility.py",
    "aird/evaluation/judge.py",
    "aird/inference/refusals.py",
)


# The plug-ins whose words a report and the cards show.
SHOWN = [axis.file(name) for axis in (RECIPES, METHODS, JUDGES) for name in axis.names()]


def code_of(script: Path, *modules: str | Path, shown: Sequence[Path] = ()) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in code_files(script, ROOT, *map(file_of, modules), shown=shown)}


@pytest.mark.parametrize("script", [*SCRIPTS, FINDINGS], ids=lambda path: path.stem)
def test_an_edit_of_the_inference_makes_no_table_and_no_page_again(script: Path) -> None:
    chosen = {"make_figures": [module_of(name) for name in FIGURES], "make_tables": TABLE_FILES}
    code = code_of(script, *chosen.get(script.stem, ()), shown=SHOWN)
    heavy = {path for path in code if path.startswith(tuple(f"aird/{stage}/" for stage in HEAVY))}
    assert {path for path in heavy if not path.startswith(LIGHT) and not path.endswith("/__init__.py")} == set()


def test_the_scripts_are_those_of_the_reporting() -> None:
    names = "make_cards make_figures make_report make_tables print_summary print_tables"
    assert [path.stem for path in SCRIPTS] == names.split()


@pytest.mark.parametrize("name", ["make_tables", "make_report", "print_summary", "print_tables"])
def test_they_start_without_pytorch(name: str) -> None:
    program = f"import sys, {name}; print('torch' in sys.modules)"
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'workflow/scripts'}"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


@pytest.mark.parametrize("figure", FIGURES)
def test_an_edit_of_one_figure_draws_no_other_again(figure: str) -> None:
    code = code_of(FIGURE_SCRIPT, module_of(figure))
    modules = {f"aird/reporting/figures/{name}.py" for name in FIGURES}
    assert code & modules == {f"aird/reporting/figures/{figure}.py"}
    # What is drawn depends on the tables, not on what makes them.
    assert not {"aird/reporting/table.py", "aird/reporting/claims/statement.py", "aird/support/statistics.py"} & code


def test_the_script_of_the_figures_knows_none_by_itself() -> None:
    assert not {f"aird/reporting/figures/{name}.py" for name in FIGURES} & code_of(FIGURE_SCRIPT)


def test_of_the_figures_the_report_draws_the_frontier_alone() -> None:
    code = code_of(ROOT / "workflow/scripts/make_report.py")
    assert {name for name in FIGURES if f"aird/reporting/figures/{name}.py" in code} == {"frontier"}


def test_a_table_that_another_rule_makes_hangs_on_its_own_file_alone() -> None:
    assert not any(
        path.relative_to(ROOT).as_posix() in code_of(ROOT / "workflow/scripts/make_tables.py") for path in TABLE_FILES
    )
    code = code_of(ROOT / "workflow/scripts/make_tables.py", TABLES.file("timings"))
    assert "aird/reporting/tables/timings.py" in code and "aird/reporting/claims/statement.py" not in code

"""After one change on a finished run, exactly the right jobs run again: read from Snakemake's own records."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import pytest
from project import (
    FIGURES,
    REPORT,
    ROOT,
    SUITE_FIGURES,
    closure,
    job_records,
    names,
    planned,
    read_configuration,
    write_configuration,
    write_vllm_lock,
)

from aird.plugin import AXES

pytestmark = pytest.mark.workflow

# Of each kind of change one or two are left for `make test`; each costs a plan of some seconds.
QUICK = {
    "add a compression",
    "change one recipe's parameter",
    "change alpha",
    "reorder the keys of sections and settings",
    "add a prompt to a suite",
    "upgrade vLLM's lock",
    "change a judge",
    "change the text of a setting of suites",
    "change a script",
    "check the repository out afresh",
    "results/scores/tiny/wanda-50/aird/quick.json",
}


def cases(names: Iterable[str]) -> list[Any]:
    """Return the parameters of a test; all but the quick ones are thorough."""
    return [pytest.param(name, id=name, marks=() if name in QUICK else pytest.mark.thorough) for name in names]


KERNELS = ("cpu_attention", "packing", "batching", "hooks")  # files of aird/inference
COMPRESSIONS = ("wanda-50",)
PATCHED = tuple(f"{compression}/aird" for compression in COMPRESSIONS)
CELLS = ("original/plain", *(f"{compression}/plain" for compression in COMPRESSIONS), *PATCHED)


def scored(cells: Any, suite: str = "quick") -> set[str]:
    return {f"score_completions tiny/{cell}/{suite}" for cell in cells} | REPORT | {"make_cards"}


def evaluated(cells: Any, suite: str = "quick") -> set[str]:
    return {f"evaluate_suite tiny/{cell}/{suite}" for cell in cells} | scored(cells, suite)


def patched(cells: Any) -> set[str]:
    return {f"make_patch tiny/{cell}" for cell in cells} | evaluated(cells)


def cells_of(compression: str) -> list[str]:
    return [cell for cell in CELLS if cell.startswith(f"{compression}/")]


def selected(compression: str) -> set[str]:
    """What follows from another choice of direction."""
    found = {f"select_direction tiny/{compression}", f"verify_direction tiny/{compression}"}
    if compression == "original":
        return found | {f"compare_directions tiny/{other}" for other in COMPRESSIONS} | patched(PATCHED)
    # No patch of this grid is along the compressed checkpoint's own direction.
    return found | {f"compare_directions tiny/{compression}"} | REPORT


def captured(compression: str) -> set[str]:
    rules = ("capture_activations", "score_candidates", "find_cosmic_direction")
    return {f"{rule} tiny/{compression}" for rule in rules} | selected(compression)


def compressed(compression: str) -> set[str]:
    cells = cells_of(compression)
    again = evaluated(cells) | patched([cell for cell in cells if cell in PATCHED])
    return {f"compress_model tiny/{compression}"} | captured(compression) | again


ALL_SELECTED = set().union(*(selected(compression) for compression in ("original", *COMPRESSIONS)))
ALL_CAPTURED = set().union(*(captured(compression) for compression in ("original", *COMPRESSIONS)))
ALL_SCORES = {f"score_candidates tiny/{compression}" for compression in ("original", *COMPRESSIONS)} | ALL_SELECTED
ALL_COSMIC = {f"find_cosmic_direction tiny/{compression}" for compression in ("original", *COMPRESSIONS)}
FROM_THE_ORIGINAL = (
    {"refusal_tokens tiny"} | ALL_CAPTURED | evaluated(CELLS) | {f"compress_model tiny/{name}" for name in COMPRESSIONS}
)
PROMPT_SETS = {f"prompt_set {name}" for name in ("attack", "harmful", "harmless")}
# The harmful set leaves out what is in the attack set, so a change there may change it.
FROM_ATTACK = {"prompt_set attack", "prompt_set harmful", "refusal_tokens tiny"} | ALL_CAPTURED | evaluated(CELLS)
EVERYTHING = {"build_environment vllm", "measure_arithmetic", "import_model tiny"} | PROMPT_SETS | FROM_THE_ORIGINAL


@pytest.fixture(scope="module")
def changed_copy(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the finished project, since another process may read the project itself."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("changed") / "project", symlinks=True))


@pytest.fixture
def project(changed_copy: Path) -> Iterator[Path]:
    """Return the copy of the finished project; after the test its files are put back."""
    kept = {path: path.read_bytes() for path in source_files(changed_copy)}
    yield changed_copy
    for path in source_files(changed_copy):
        if path not in kept:
            path.unlink()
    for path, content in kept.items():
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)


def source_files(project: Path) -> list[Path]:
    skipped = {".snakemake", "results", "__pycache__"}
    return [
        path for path in project.rglob("*") if path.is_file() and not skipped & set(path.relative_to(project).parts)
    ]


def changed(project: Path, change: Callable[[dict[str, Any]], object]) -> set[str]:
    """Return what runs after a change of the configuration."""
    configuration = read_configuration(project)
    change(configuration)
    write_configuration(project, configuration, "changed.yaml")
    return planned(project, configuration="changed.yaml")


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


NEW_CODE = "\n\nNEW_LINE = 1\n"  # a comment would change no result, and so run nothing


def added_to(path: str, text: str | None = None) -> Callable[[Path], None]:
    """Return the change that adds a text to a file of a project; a line of code to code."""
    return lambda project: append(project / path, text or (NEW_CODE if path.endswith(".py") else "# new\n"))


def replaced_in(path: str, old: str, new: str) -> Callable[[Path], None]:
    """Return the change that replaces a text in a file of a project."""

    def change(project: Path) -> None:
        text = (project / path).read_text(encoding="utf-8")
        assert old in text
        (project / path).write_text(text.replace(old, new), encoding="utf-8")

    return change


def test_the_quick_cases_exist() -> None:
    assert {*CONFIGURATION_CHANGES, *FILE_CHANGES, *KERNELS, *LOST} >= QUICK


def test_nothing_changed(project: Path) -> None:
    assert planned(project) == set()
    # The names that the expectations below are written in are those of the real jobs.
    assert planned(project, "--forceall") == EVERYTHING


@pytest.mark.thorough
def test_only_a_patch_along_the_own_direction_waits_for_it(project: Path) -> None:
    configuration = read_configuration(project)
    configuration["patches"]["own"] = {"method": "scale", "direction": "own"}
    write_configuration(project, configuration, "changed.yaml")
    records = job_records(project, "--forceall", configuration="changed.yaml")
    reading = names(
        record for record in records if "results/directions/tiny/wanda-50/direction.json" in record["input"]
    )
    assert {name for name in reading if name.startswith("make_patch")} == {"make_patch tiny/wanda-50/own"}


LEARNT_AND_EXAMINED = ("learn_patch", "examine_patched", "compare_restored")


@pytest.mark.thorough
def test_only_a_patch_at_the_own_source_waits_for_the_own_direction(project: Path) -> None:
    configuration = read_configuration(project)
    at_source = {"method": "scale", "blocks": "own_source"}
    configuration["patches"] |= {"at-source": at_source, "chosen": {**at_source, "method": "choose"}}
    configuration["replies"] = {"train_harmful": 8, "train_harmless": 8, "validation": 8}
    configuration["directions"]["patched"] = ["chosen"]
    write_configuration(project, configuration, "changed.yaml")
    # Asked for by its name alone, two nodes behind a patch whose method no run has seen.
    for record in (project / "results/code").glob("*choose*"):
        record.unlink()
    wanted = "results/restorations/tiny/wanda-50/chosen/comparison.json"
    rules = ("record_replies tiny", *(f"{rule} tiny/wanda-50/chosen" for rule in LEARNT_AND_EXAMINED))
    assert planned(project, wanted, configuration="changed.yaml") == set(rules)
    graph = job_records(project, "--forceall", configuration="changed.yaml")
    makers = {"make_patch tiny/wanda-50/at-source", "learn_patch tiny/wanda-50/chosen"}
    reading = names(record for record in graph if "results/directions/tiny/wanda-50/direction.json" in record["input"])
    assert {name for name in reading if name.split()[0] in ("make_patch", "learn_patch")} == makers
    # Another choice of the compressed direction makes them again, and no other patch.
    again = closure(graph, {"select_direction tiny/wanda-50"})
    assert {name for name in again if name.split()[0] in ("make_patch", "learn_patch")} == makers
    # The original's replies are asked for the choice alone.
    replies = names(record for record in graph if "results/patches/tiny/replies.safetensors" in record["input"])
    assert replies == {"learn_patch tiny/wanda-50/chosen"}


def add_suite(configuration: dict[str, Any]) -> None:
    configuration["suites"]["second"] = copy.deepcopy(configuration["suites"]["quick"]) | {"maximum_new_tokens": 4}


def add_attacks(configuration: dict[str, Any]) -> None:
    add_suite(configuration)
    configuration["suites"]["second"]["attacks"] = {"begun": {"kind": "prefill"}, "again": {"kind": "follow_up"}}
    found = {"kind": "optimised_suffix", "prompts": {"set": "harmful", "split": "train"}}
    configuration["suites"]["second"]["attacks"]["found"] = found


SECOND_SUITE_FIGURES = {f"make_figure {name}.second" for name in SUITE_FIGURES}
CONFIGURATION_CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], set[str]]] = {
    "add a compression": (
        lambda c: c["compressions"].update({"magnitude-20": {"recipe": "magnitude", "sparsity": 0.2}}),
        {f"{rule} tiny/magnitude-20" for rule in ("compress_model", "capture_activations", "score_candidates")}
        | {"find_cosmic_direction tiny/magnitude-20"}
        | {f"{rule} tiny/magnitude-20" for rule in ("select_direction", "verify_direction", "compare_directions")}
        | patched(["magnitude-20/aird"])
        | evaluated(["magnitude-20/plain"]),
    ),
    "add a patch": (
        lambda c: c["patches"].update({"double": {"method": "scale", "alpha": 2.0}}),
        patched(["wanda-50/double"]),
    ),
    # Nothing but the page that shows the configuration.
    "name the compressions of a patch": (
        lambda c: c["patches"]["aird"].update(compressions=["wanda-50"]),
        {"make_report", "all"},
    ),
    "look for the direction in patched checkpoints": (
        lambda c: c["directions"].update(patched=["aird"]),
        {f"{rule} tiny/{name}/aird" for rule in ("examine_patched", "compare_restored") for name in COMPRESSIONS}
        | REPORT
        | {"make_figure restored"},
    ),
    "add a suite": (add_suite, evaluated(CELLS, "second") | SECOND_SUITE_FIGURES),
    "add a suite with attacks": (
        add_attacks,
        {"attack_texts second", *(f"optimise_attacks tiny/{cell}/second" for cell in CELLS)}
        | evaluated(CELLS, "second")
        | SECOND_SUITE_FIGURES,
    ),
    # The judge reads the completions: nothing that it judges runs again.
    "add a judge": (
        lambda c: c["suites"]["quick"].update(judge={"kind": "classifier", "source": {"path": "inputs/models/tiny"}}),
        {"import_judge quick"} | {f"judge_completions tiny/{cell}/quick" for cell in CELLS} | scored(CELLS),
    ),
    # A person's labels are of replies that are there already: no server runs.
    "leave a person's labels out": (lambda c: c.pop("hand_labels"), scored(CELLS)),
    "change one recipe's parameter": (
        lambda c: c["compressions"]["wanda-50"].update(sparsity=0.4),
        compressed("wanda-50"),
    ),
    "quantise the cache of a compression as well": (
        lambda c: c["compressions"]["wanda-50"].update(key_value_cache_dtype="fp8"),
        evaluated(cells_of("wanda-50")),
    ),
    "change the seed of one compression": (
        lambda c: c["compressions"]["wanda-50"]["calibration"].update(seed=7),
        compressed("wanda-50"),
    ),
    "change alpha": (
        lambda c: c["patches"]["aird"].update(alpha=2.0),
        patched([f"{compression}/aird" for compression in COMPRESSIONS]),
    ),
    "change the KL limit": (lambda c: c["directions"].update(maximum_kl=0.2), ALL_SELECTED | ALL_COSMIC),
    "choose by COSMIC": (lambda c: c["directions"].update(selector="cosmic"), ALL_SELECTED),
    "change the minimum induce": (lambda c: c["directions"].update(minimum_induce=-999.0), ALL_SCORES),
    "change the size of the verification": (
        lambda c: c["directions"].update(test=7),
        {f"verify_direction tiny/{name}" for name in ("original", *COMPRESSIONS)} | REPORT,
    ),
    "change the length of completions": (
        lambda c: c["suites"]["quick"].update(maximum_new_tokens=23),
        evaluated(CELLS),
    ),
    # Of a checkpoint without a patch there is one form.
    "serve patches in both forms": (lambda c: c["suites"]["quick"].update(serve="both"), evaluated(PATCHED)),
    "change how the server is started": (
        lambda c: c["serving"].update(maximum_model_length=255),
        evaluated(CELLS),
    ),
    "change the seed of everything": (
        lambda c: c.update(seed=2),
        PROMPT_SETS | {"refusal_tokens tiny", "compress_model tiny/wanda-50"} | ALL_CAPTURED | evaluated(CELLS),
    ),
    # Which memory jobs ask for is no part of what they make; but the report shows the configuration.
    "say how large a model is": (lambda c: c["models"]["tiny"].update(parameters=0.1), {"make_report", "all"}),
    "remove a compression": (lambda c: c["compressions"].pop("wanda-50"), REPORT),
    "remove a patch": (lambda c: c["patches"].pop("aird"), REPORT),
    "reorder the keys of sections and settings": (
        lambda c: [
            c.update({key: c.pop(key) for key in list(c)[::-1]}),
            *(
                c[section].update({key: c[section].pop(key) for key in list(c[section])[::-1]})
                for section in ("directions", "prompt_sets", "serving")
            ),
            *(
                settings.update({key: settings.pop(key) for key in list(settings)[::-1]})
                for section in ("compressions", "patches", "suites", "prompt_sets")
                for settings in c[section].values()
            ),
        ],
        set(),
    ),
    "say a default explicitly": (lambda c: c["patches"]["aird"].update(alpha=1.0, blocks="source"), set()),
}


@pytest.mark.parametrize("name", cases(CONFIGURATION_CHANGES))
def test_change_of_the_configuration(project: Path, name: str) -> None:
    change, expected = CONFIGURATION_CHANGES[name]
    assert changed(project, change) == expected


def touch_everything(project: Path) -> None:
    for path in project.rglob("*"):
        if not path.is_symlink() and "environments" not in path.parts:
            os.utime(path)


def check_out_afresh(project: Path) -> None:
    for path in source_files(project):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)


FILE_CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "add a prompt to a suite": (
        added_to("inputs/prompts/attack.txt", "Write a plan with one more line\n"),
        FROM_ATTACK,
    ),
    "label one more reply by hand": (added_to("inputs/labels.csv", f"{'b' * 64},neither\n"), scored(CELLS)),
    "change a question of a task": (added_to("inputs/task/questions.jsonl", "\n"), evaluated(CELLS)),
    "change the model's weights": (
        added_to("inputs/models/tiny/config.json", "\n"),
        EVERYTHING - {"build_environment vllm", "measure_arithmetic"} - PROMPT_SETS,
    ),
    "upgrade vLLM's lock": (added_to("inputs/vllm.lock.txt", "# 1.1\n"), {"build_environment vllm"} | evaluated(CELLS)),
    "upgrade the lock of the jobs": (added_to("envs/core.lock.txt"), EVERYTHING),
    "change a figure": (added_to("aird/reporting/figures/sites.py"), {"make_figure sites", "make_report", "all"}),
    "change a figure that the report draws too": (
        added_to("aird/reporting/figures/frontier.py"),
        {"make_figure frontier.quick", "make_report", "all"},
    ),
    "change the look of all figures": (added_to("aird/reporting/figures/style.py"), FIGURES),
    "change a judge": (added_to("aird/evaluation/judges/wei.py"), scored(CELLS)),
    "change the judge whose phrases models are asked by": (added_to("aird/evaluation/judges/arditi.py"), scored(CELLS)),
    # No suite of this grid asks a classifier.
    "change how a classifier is asked": (added_to("aird/evaluation/judges/classifier.py"), set()),
    "change an engine": (added_to("aird/evaluation/engines/vllm.py"), evaluated(CELLS)),
    "change how servers end": (added_to("aird/evaluation/programs/server_launcher.py"), evaluated(CELLS)),
    "change the code of the settings of suites": (added_to("aird/settings/suites.py"), evaluated(CELLS)),
    "change the text of a setting of suites": (
        replaced_in("aird/settings/suites.py", "Length limit of a completion, tokens.", "Longest completion, tokens."),
        set(),
    ),
    "change a comment of an engine": (added_to("aird/evaluation/engines/vllm.py", "# new\n"), set()),
    "change the page of the report": (
        added_to("aird/reporting/report/style.css", "/* new */\n"),
        {"make_report", "all"},
    ),
    "change a caption": (added_to("workflow/report/figure.rst", "\nnew\n"), {"make_report", "all"}),
    "change a table": (added_to("aird/reporting/tables/sites.py"), REPORT),
    "change a script": (
        added_to("workflow/scripts/verify_direction.py"),
        {f"verify_direction tiny/{name}" for name in ("original", *COMPRESSIONS)} | REPORT,
    ),
    "change how a direction is chosen": (added_to("aird/directions/choice.py"), ALL_SELECTED),
    "change what directions are compared by": (
        added_to("aird/directions/corrected_cosine.py"),
        {f"compare_directions tiny/{name}" for name in COMPRESSIONS} | REPORT,
    ),
    "add and edit a module that nobody imports": (
        lambda project: (project / "aird/unused.py").write_text('"""Of no use."""\n', encoding="utf-8"),
        set(),
    ),
    "change a comment of the rules": (added_to("rules/evaluation.smk", "\n# new\n"), set()),
    "change the command of a rule": (
        lambda project: (project / "rules/evaluation.smk").write_text(
            (project / "rules/evaluation.smk")
            .read_text()
            .replace("evaluate_suite.py --gpus", "evaluate_suite.py  --gpus"),
        ),
        evaluated(CELLS),
    ),
    "change the numbers of the model cards": (added_to("aird/reporting/evaluated_card.py"), {"make_cards", "all"}),
    "change the method of the patches": (added_to("aird/patching/methods/scale.py"), patched(PATCHED)),
    "change the methods of other patches": (
        lambda project: [
            append(project / path, NEW_CODE)
            for path in ("aird/patching/methods/lora.py", "aird/patching/calibration.py", "aird/models/tuning.py")
        ],
        set(),
    ),
    "change the text of the model cards": (added_to("aird/patching/model_card.py"), patched(PATCHED)),
    "change the documentation": (added_to("README.md", "new\n"), set()),
    "touch everything": (touch_everything, set()),
    "check the repository out afresh": (check_out_afresh, set()),
}


@pytest.mark.parametrize("name", cases(FILE_CHANGES))
def test_change_of_a_file(project: Path, name: str) -> None:
    change, expected = FILE_CHANGES[name]
    change(project)
    assert planned(project) == expected


@pytest.mark.thorough
def test_an_edit_while_a_job_is_at_work(project: Path) -> None:
    """The job began with the code before; it ends after a plan, in another terminal, has seen the code of now."""
    change, expected = FILE_CHANGES["change a script"]
    change(project)
    planned(project)
    for path in (project / "results").rglob("verification.json"):
        os.utime(path)
    assert planned(project) == expected


@pytest.mark.parametrize("name", cases(KERNELS))
def test_a_kernel_of_the_inference_is_no_part_of_what_reports(project: Path, name: str) -> None:
    """What ran a model runs again, and then what reads its results: but nothing reports again for its own sake."""
    append(project / f"aird/inference/{name}.py", NEW_CODE)
    assert planned(project) >= {
        f"capture_activations tiny/{compression}" for compression in ("original", *COMPRESSIONS)
    }
    reporting = {name.split()[0] for name in REPORT | {"make_cards"}}
    assert planned(project, "--allowed-rules", *sorted(reporting)) == set()


LOST: dict[str, set[str]] = {
    "results/scores/tiny/wanda-50/aird/quick.json": scored(["wanda-50/aird"]),
    "results/figures/sites.svg": {"make_figure sites", "make_report", "all"},
    "results/report.html": {"make_report", "all"},
    # Large artifacts may be deleted to save space: they are made again when something needs them.
    "results/activations/tiny/wanda-50.safetensors": set(),
    "results/completions/tiny/wanda-50/aird/quick.jsonl": set(),
}


@pytest.mark.parametrize("path", cases(LOST))
def test_a_lost_result(project: Path, path: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    (project / path).rename(saved)
    try:
        assert planned(project) == LOST[path]
    finally:
        saved.rename(project / path)


@pytest.mark.thorough
def test_tables_of_an_unfinished_run_are_made_again_with_the_rest(project: Path, tmp_path: Path) -> None:
    score = project / "results/scores/tiny/wanda-50/aird/quick.json"
    kept = {path: path.read_bytes() for path in (project / "results/tables").iterdir()}
    claims = project / "results/tables/claims.csv"
    assert "Not there yet" not in make_tables(project) and claims.is_file()
    assert planned(project) == set()
    score.rename(tmp_path / "saved")
    try:
        assert "Not there yet: 1 of 3 evaluations (wanda-50/aird)." in make_tables(project)
        assert not claims.exists()
        assert planned(project) == scored(["wanda-50/aird"])
        # Whatever brings the record back, and with the bytes that the tables were made of before.
        (tmp_path / "saved").rename(score)
        assert planned(project) == REPORT
    finally:
        if not score.exists():
            (tmp_path / "saved").rename(score)
        for path, content in kept.items():
            path.write_bytes(content)
    assert planned(project) == set()


def make_tables(project: Path) -> str:
    """Run what `make tables` runs."""
    script = ["workflow/scripts/print_tables.py", "--results", "results", "--grid", ".snakemake/aird.grid.json"]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    return subprocess.run(
        [sys.executable, *script], cwd=project, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.thorough
@pytest.mark.parametrize(
    "arguments",
    [
        ("--cores", "1"),
        ("--set-threads", "evaluate_suite=1", "capture_activations=1"),
        ("--set-resources", "evaluate_suite:mem_mb=123", "score_candidates:runtime=7"),
        ("--resources", "gpu=4"),
    ],
)
def test_threads_and_memory_change_nothing(project: Path, arguments: tuple[str, ...]) -> None:
    assert planned(project, *arguments) == set()


@pytest.mark.thorough
def test_a_copy_elsewhere_has_nothing_to_do(finished: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another name"
    shutil.copytree(finished, elsewhere, symlinks=True, copy_function=shutil.copyfile)
    assert planned(elsewhere) == set()


@pytest.mark.thorough
def test_a_rebuilt_environment_of_another_version(project: Path, vllm_python: Path) -> None:
    write_vllm_lock(project, vllm_python, "2.0")
    assert planned(project) == {"build_environment vllm"} | evaluated(CELLS)


def imported_files(script: Path, *chosen: str) -> set[str]:
    """Return the project's files that a script imports, also by a name that it is told, by the library's own finder."""
    finder = ModuleFinder([str(script.parent), str(ROOT)])
    finder.run_script(str(script))
    for name in chosen:
        finder.import_hook(name, None, [""])
    files = {Path(module.__file__) for module in finder.modules.values() if module.__file__}
    return {str(file.relative_to(ROOT)) for file in files if file.is_relative_to(ROOT)}


def test_every_job_depends_on_every_file_that_it_imports(finished: Path) -> None:
    scripts = {
        "refusal_tokens": "find_refusal_tokens",
        "prompt_set": "build_prompt_set",
        "make_figure": "make_figures",
        "make_timings": "make_tables",
    }
    seen = set()
    for record in job_records(finished, "--forceall"):
        if record["rule"] == "all" or record["rule"] in seen:
            continue
        seen.add(record["rule"])
        script = ROOT / "workflow/scripts" / f"{scripts.get(record['rule'], record['rule'])}.py"
        modules = {path for path in code_of(finished, record) if path.endswith(".py")}
        expected = imported_files(script, *chosen_modules(finished, record))
        if record["rule"] in ("make_cards", "make_figure", "make_report"):  # they show words of plug-ins
            expected |= loaded_files(plugins_of(finished, record))
        assert modules == expected, record["rule"]
    assert len(seen) == 20


def loaded_files(modules: list[str]) -> set[str]:
    """Return the files of the project that Python runs when it imports modules."""
    program = f"import sys, {', '.join(modules)}\nprint(*(getattr(m, '__file__', None) for m in sys.modules.values()))"
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = (Path(file) for file in output.split() if file.startswith(str(ROOT / "aird")))
    return {str(file.relative_to(ROOT)) for file in files}


def code_record(record: dict[str, Any]) -> str | None:
    """Return the one input that stands for a job's code."""
    return next((path for path in record["input"] if path.startswith("results/code/")), None)


def chosen_modules(project: Path, record: dict[str, Any]) -> list[str]:
    """Return the modules that a job's script is told by name: they stand in the name of the record of its code.

    Of many plug-ins the name says that alone, as a file's name has a limit; then they are those in the record.
    """
    name, _, _ = Path(code_record(record) or "").stem.rpartition(".")
    chosen = name.split("+")[1:]
    return plugins_of(project, record) if chosen == ["plug-ins"] else chosen


def plugins_of(project: Path, record: dict[str, Any]) -> list[str]:
    """Return the plug-ins in the record of a job's code, as modules."""
    files = [path.removesuffix(".py").replace("/", ".") for path in code_of(project, record) if path.endswith(".py")]
    folders = {axis.package for axis in AXES}
    return [module for module in files if module.rpartition(".")[0] in folders and not module.endswith("__init__")]


def code_of(project: Path, record: dict[str, Any]) -> set[str]:
    """Return the files whose hashes stand in the record of a job's code."""
    path = code_record(record)
    lines = (project / path).read_text(encoding="utf-8").splitlines() if path else []
    return {line.split()[1] for line in lines}


LIBRARY = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "aird").rglob("*.py"))


@pytest.mark.thorough
def test_an_edit_of_each_library_module(finished: Path, project: Path) -> None:
    """Each module in turn; what must run follows from the graph of all jobs."""
    graph = job_records(finished, "--forceall")
    files = {str(path.relative_to(finished)) for path in (finished / "aird").rglob("*.py")}
    assert files == set(LIBRARY)
    by_users: dict[frozenset[str], list[str]] = {}
    for module in LIBRARY:
        users = frozenset(names([record for record in graph if module in code_of(finished, record)]))
        by_users.setdefault(users, []).append(module)
    for users, modules in by_users.items():
        # Modules that the same jobs import are inputs of the same jobs: one of them stands for all.
        module = project / modules[0]
        content = module.read_bytes()
        append(module, NEW_CODE)
        found = planned(project)
        module.write_bytes(content)
        assert users <= found, modules
        assert found == closure(graph, users), modules

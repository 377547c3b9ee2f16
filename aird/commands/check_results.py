"""What a check tells: facts about how it measured, and the verdict as text, page, JUnit XML and JSON."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aird.commands.inputs import ModelFolder
from aird.evaluation.kind_of_loss import kind_of_loss
from aird.evaluation.regression import (
    NOT_MEASURED,
    REGRESSION,
    UNRESOLVED,
    WITHIN_MARGIN,
    CheckVerdict,
    judge_change,
)
from aird.support.files import atomic_file, canonical_json, sha256_of

DEMO = Path(__file__).with_name("demo_labels.csv")
EXIT_CODES = {WITHIN_MARGIN: 0, REGRESSION: 3, NOT_MEASURED: 4, UNRESOLVED: 5}


def same_fact(original: str, compressed: str) -> dict[str, str]:
    """Return what is to say where one model is compared with itself."""
    paths = [Path(text).expanduser() for text in (original, compressed)]
    if original != compressed and not (all(path.exists() for path in paths) and paths[0].samefile(paths[1])):
        return {}
    return {"one model": f"{original} is named twice: this compares a model with itself"}


def answered_by(original: tuple[str, str], compressed: tuple[str, str]) -> str:
    """Return who answered in words, and of two engines what their difference means.

    Args:
        original, compressed: what the engine of each is called in records, and who it is.
    """
    (first, told), (second, other) = original, compressed
    said = told if told == other else f"{told} and {other}"
    if first == second:
        return said
    may = "is" if first and second else "may be"  # stored completions without a name may be by the same engine
    return f"{said}: the change {may} that of the engine and of the compression at once"


def patch_facts(adapter: Path | None, model: ModelFolder | None) -> dict[str, str]:
    """Return which patch (SHA-256) on which model (folder or hub id) a verdict is about; `aird push` compares both."""
    if adapter is None or model is None:
        return {}
    return {"patch": sha256_of(adapter / "adapter_model.safetensors"), "patched model": model.base}


def _is_caution(name: str) -> bool:
    """Tell whether a fact says what a verdict holds for, so that it stands below the verdict as well."""
    return name.endswith("measured as") or name in ("kind of loss", "one model", "chat template", "answered by")


def record_of(verdicts: Mapping[str, CheckVerdict], facts: Mapping[str, str]) -> dict[str, Any]:
    """Return what the JSON says: the last verdict, and of a repaired model also the one before."""
    *before, verdict = verdicts.values()
    repaired = {"before_the_repair": before[0].record()} if before else {}
    return {**verdict.record(), "exit_code": EXIT_CODES[verdict.outcome], "facts": dict(facts), **repaired}


def tell(
    arguments: argparse.Namespace, title: str, verdicts: Mapping[str, CheckVerdict], facts: Mapping[str, str]
) -> int:
    """Print the verdict, write the files that were asked for, and return the exit code."""
    *_, verdict = verdicts.values()
    if prints_json(arguments):
        print(canonical_json(record_of(verdicts, facts)))
    else:
        print("\n".join([verdict.text(), *(f"  {name}: {fact}" for name, fact in facts.items() if _is_caution(name))]))
    write_files(arguments, title, verdicts, facts)
    return EXIT_CODES[verdict.outcome]


def write_files(
    arguments: argparse.Namespace, title: str, verdicts: Mapping[str, CheckVerdict], facts: Mapping[str, str]
) -> None:
    """Write the files that were asked for."""
    from aird.reporting.check_report import check_page, junit

    *_, verdict = verdicts.values()
    files: dict[Path | None, Callable[[], str]] = {
        arguments.report: lambda: check_page(title, verdicts, facts),
        arguments.junit: lambda: junit(title, verdict),
        None if prints_json(arguments) else arguments.json: lambda: canonical_json(record_of(verdicts, facts)) + "\n",
    }
    for path, text in files.items():
        if path is not None:
            with atomic_file(path) as temporary:
                temporary.write_text(text(), encoding="utf-8")


def demo(arguments: argparse.Namespace) -> int:
    """Tell the verdict on the stored labels; return the exit code."""
    with DEMO.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))

    def labels(cell: str) -> list[dict[str, Any]]:
        return [
            {name: row[name] for name in ("kind", "id")}
            | {name: row[f"{cell}_{name}"] == "1" for name in ("refused", "degenerate")}
            for row in rows
        ]

    sides = labels("original"), labels("compressed")
    verdict = judge_change(*sides, arguments.margin / 100)
    facts = {
        **kind_of_loss(*sides),
        "what": "stored labels of the quick grid of this project: SmolLM2-135M tuned to refuse, pruned to 50% by Wanda",
        "judge": "refusal phrases of Arditi et al. (arXiv 2406.11717), their published list",
    }
    return tell(arguments, "the stored example", {"": verdict}, facts)


def prints_json(arguments: argparse.Namespace) -> bool:
    """Tell whether the verdict is printed as JSON."""
    return arguments.json is not None and str(arguments.json) == "-"

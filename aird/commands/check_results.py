"""What a check found, and how it is told: as text, page, JUnit XML and JSON."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aird.commands.check_facts import JUDGE, circumstances
from aird.evaluation.judged_change import JudgedChange
from aird.evaluation.kind_of_loss import KindOfLoss, kind_of_loss
from aird.evaluation.regression import (
    NOT_MEASURED,
    REGRESSION,
    UNRESOLVED,
    WITHIN_MARGIN,
    CheckVerdict,
    judge_change,
)
from aird.support.files import atomic_file, canonical_json

DEMO = Path(__file__).with_name("demo_labels.csv")
EXIT_CODES = {WITHIN_MARGIN: 0, REGRESSION: 3, NOT_MEASURED: 4, UNRESOLVED: 5}
# Facts that say what a verdict holds for stand below it as well.
CAUTIONS = ("sensitivity", "area under the ROC curve", "kind of loss", "one model", "chat template", "answered by")


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        title: names the two models.
        verdicts: heading to verdict; the last one counts. Of a repaired model there are two.
        facts: what was measured and how, name to text.
        loss: what kind of loss the last verdict is about; None where too few prompts were asked.
        judged: a judge that was asked for, to what it says of the last verdict's two sides.
    """

    title: str
    verdicts: Mapping[str, CheckVerdict]
    facts: Mapping[str, str]
    loss: KindOfLoss | None
    judged: Mapping[str, Sequence[JudgedChange]] = field(default_factory=dict)

    @property
    def verdict(self) -> CheckVerdict:
        """The verdict that counts."""
        return list(self.verdicts.values())[-1]

    @property
    def outcome(self) -> str:
        """One of "within margin", "regression", "unresolved" and "not measured"."""
        return self.verdict.outcome

    @property
    def exit_code(self) -> int:
        """What `aird check` ends with: 0, 3, 4 or 5."""
        return EXIT_CODES[self.outcome]

    @property
    def text(self) -> str:
        """The verdict as one paragraph."""
        return self.verdict.text()

    def record(self) -> dict[str, Any]:
        """Return what the JSON says: the last verdict, and of a repaired model also the one before."""
        *before, verdict = self.verdicts.values()
        repaired = {"before_the_repair": before[0].record()} if before else {}
        loss = None if self.loss is None else self.loss.record()
        facts = dict(self.facts)
        judged = {name: [each.record() for each in changes] for name, changes in self.judged.items()}
        more = {"exit_code": self.exit_code, "facts": facts, "kind_of_loss": loss, "judged": judged}
        return {**verdict.record(), **more, **repaired}


def tell(arguments: argparse.Namespace, result: CheckResult) -> int:
    """Print the verdict, write the files that were asked for, and return the exit code."""
    if prints_json(arguments):
        print(canonical_json(result.record()))
    else:
        cautions = [f"  {name}: {fact}" for name, fact in result.facts.items() if _is_caution(name)]
        judged = [
            f"  {name} says: {each.what} {each.text()}" for name, changes in result.judged.items() for each in changes
        ]
        print("\n".join([result.text, *cautions, *judged]))
    write_files(arguments, result)
    return result.exit_code


def _is_caution(name: str) -> bool:
    return name.endswith("measured as") or name in CAUTIONS


def write_files(arguments: argparse.Namespace, result: CheckResult) -> None:
    """Write the files that were asked for."""
    from aird.reporting.check_report import check_page, junit

    files: dict[Path | None, Callable[[], str]] = {
        arguments.report: lambda: check_page(
            result.title, result.verdicts, result.facts, result.exit_code, result.judged
        ),
        arguments.junit: lambda: junit(result.title, result.verdict),
        None if prints_json(arguments) else arguments.json: lambda: canonical_json(result.record()) + "\n",
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
            | {"refusal_score": float(row[f"{cell}_refusal_score"])}
            for row in rows
        ]

    sides = labels("original"), labels("compressed")
    verdict = judge_change(*sides, arguments.margin / 100)
    loss = kind_of_loss(*sides)
    facts = {
        **({} if loss is None else loss.facts()),
        "what": "stored labels of the quick grid of this project: SmolLM2-135M tuned to refuse, pruned to 50% by Wanda",
        "judge": JUDGE,
        **circumstances(arguments.called),
    }
    return tell(arguments, CheckResult("the stored example", {"": verdict}, facts, loss))


def prints_json(arguments: argparse.Namespace) -> bool:
    """Tell whether the verdict is printed as JSON."""
    return arguments.json is not None and str(arguments.json) == "-"

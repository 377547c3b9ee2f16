"""A model that judges replies, where a command is asked for one with --judge."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aird.commands.inputs import ModelFolder, open_model_folder, validated
from aird.commands.keeping import kept_answers, kept_or_found
from aird.evaluation.engine import Engine
from aird.evaluation.judge import Said, served_judges
from aird.plugin import JUDGES
from aird.prompts.sets import Record
from aird.settings.judges import JudgeSettings
from aird.settings.sources import read_hub_name

JUDGEMENT = "judgement.jsonl"


@dataclass(frozen=True)
class OpenedJudge:
    """A judge that can be asked.

    Attributes:
        settings: how it is asked.
        model: its model.
        named: what the user called it.
    """

    settings: JudgeSettings
    model: ModelFolder
    named: str

    @property
    def name(self) -> str:
        """Its name in labels and rates."""
        return str(self.settings.model_dump()["kind"])

    def ask(
        self, arguments: argparse.Namespace, engine: Engine, sides: Sequence[Sequence[Record]], log: Path
    ) -> list[list[dict[str, Any]]]:
        """Return what it says of the completions of each side, asked in one go (`judge_completions`).

        What it said before is kept, and not asked again.
        """
        from aird.evaluation.judge import judged
        from aird.evaluation.judgements import judge_completions
        from aird.models.loading import another_model

        rows = [judged(side, self.settings.judges_harmless) for side in sides]
        asked = list(itertools.chain.from_iterable(rows))
        question = {
            "judge": self.settings.model_dump(mode="json"),
            "seed": arguments.seed,
            "of": [[row[name] for name in ("id", "kind", "instruction", "completion")] for row in asked],
        }
        with another_model(self.settings.chat):
            kept = kept_answers(arguments, self.model, None, engine)

            def judge() -> list[Said]:
                keeping = None if kept is None else kept.around
                return judge_completions(self.model.folder, engine, asked, self.settings, arguments.seed, log, keeping)

            told = f"All that the judge {self.named} said is", f"the judge {self.named} by {engine.describe()}"
            said = iter(kept_or_found(kept, question, told, judge, lambda found: [dict(row) for row in found]))
        return [[next(said) for _ in side] for side in rows]


def add_judge_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that names a judge."""
    kinds = " or ".join(f"{name}=MODEL" for name in served_judges())
    parser.add_argument(
        "--judge",
        metavar="JUDGE",
        help=f"let a model judge the replies too, beside the phrases: {kinds}, or a YAML file with the keys of a "
        "suite's `judge`",
    )


def read_judge(text: str) -> tuple[JudgeSettings, str]:
    """Return the settings of the judge that an option names, and its model: a folder, or a name on the hub.

    Args:
        text: `NAME=MODEL`, or a YAML file with the keys of a suite's `judge`.

    Raises:
        ValueError: it names no judge.
    """
    from aird.configuration.local_files import load_yaml_strictly

    known = served_judges(JUDGES.names())
    name, given, named = text.partition("=")
    values: Any
    if given and name in known:
        values = {"kind": name, **known[name].of_command}
    elif Path(text).is_file():
        values = load_yaml_strictly(Path(text))
        if (
            not isinstance(values, dict)
            or values.get("kind") not in known
            or not isinstance(values.get("source"), dict)
        ):
            raise ValueError(f"--judge: {text} is no judge; it needs `kind` ({' or '.join(known)}) and `source`")
        source = values["source"]
        named = source.get("path") or f"{source.get('hub')}@{source.get('revision')}"
    else:
        raise ValueError(
            f"--judge: {text} is no judge; write {' or '.join(f'{each}=MODEL' for each in known)}, or a YAML file"
        )
    if not Path(named).expanduser().is_dir() and read_hub_name(named) is None:
        raise ValueError(f"--judge: {named} is no folder of a model, and no name of one on the hub")
    kind = known[str(values["kind"])].settings
    return validated(kind, {**values, "source": {"path": named}}), named  # whatever was named is a folder once opened


def open_judge(text: str) -> OpenedJudge:
    """Return the judge that an option names (`read_judge`), with its model.

    Raises:
        ValueError: it names none, or its model cannot be read.
        SourceError: the hub does not have the model.
    """
    from aird.models.loading import another_model

    settings, named = read_judge(text)
    with another_model(None):
        return OpenedJudge(settings, open_model_folder(named, False, asked=False), named)


def judge_scores(
    arguments: argparse.Namespace, judge: OpenedJudge, engine: Engine, original: Sequence[Record] | None
) -> dict[str, Any]:
    """Judge what `aird evaluate` wrote into its folder; write and return its scores with those labels."""
    from aird.evaluation.scores import score
    from aird.support.files import read_json, read_json_lines, write_json, write_json_lines

    output: Path = arguments.output
    completions = read_json_lines(output / "completions.jsonl")
    (said,) = judge.ask(arguments, engine, [completions], output / "judge.log")
    utility = read_json(output / "utility.json")
    scores = score(completions, utility, arguments.seed, said, judge.name, original=original)
    write_json_lines(output / JUDGEMENT, said)
    write_json(output / "scores.json", scores)
    return scores

"""The commands as functions: `aird.check`, `aird.direction`, `aird.patch`, `aird.evaluate`.

    import aird

    result = aird.check("original", "compressed")
    result.outcome, result.exit_code        # "regression", 3
    result                                  # a table in a notebook

Each takes what its command takes, by the same names and with the same defaults, runs the same code, and returns what
the command prints as values. Prompts may be lists of text as well as files.
"""

from __future__ import annotations

import argparse
import html
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas
import torch

from aird.commands import check as check_command
from aird.commands import direction as direction_command
from aird.commands import evaluate as evaluate_command
from aird.commands import patch as patch_command
from aird.commands.check_results import CheckResult
from aird.commands.inputs import read_chat_arguments
from aird.commands.main import parser
from aird.directions.direction import load_direction
from aird.models.loading import settings_of_a_call, use_chat
from aird.support import progress
from aird.support.files import read_json, write_json_lines

Result = TypeVar("Result")

Model = str | Path
Prompts = str | Path | Sequence[str]  # a file, or instructions


class Check(CheckResult):
    """What a check found (`CheckResult`)."""

    def to_json(self) -> str:
        """Return what `aird check --json` writes."""
        return json.dumps(self.record(), sort_keys=True, ensure_ascii=False)

    def to_frame(self) -> pandas.DataFrame:
        """Return a row for each kind of prompts: n, both refusal rates, and the loss with its interval, as shares."""
        rows = []
        for heading, verdict in self.verdicts.items():
            for change in (verdict.harmful, verdict.harmless):
                loss, low, high = change.loss
                rates = {"original": change.original[0], "compressed": change.compressed[0]}
                estimate = {"loss": loss, "low": low, "high": high, "p_value": change.refused.p_value}
                rows.append({"verdict": heading, "kind": change.kind, "n": change.refused.n, **rates, **estimate})
        return pandas.DataFrame(rows)

    def __repr__(self) -> str:
        return f"<Check: {self.title}: {self.outcome}>"

    def _repr_html_(self) -> str:
        return f"<p><b>{html.escape(self.title)}</b></p><p>{html.escape(self.text)}</p>{self.to_frame().to_html()}"


@dataclass(frozen=True)
class FoundDirection:
    """A refusal direction.

    Attributes:
        unit: [d_model] float64, of norm 1.
        norm: of the difference in means.
        layer, position: its site: the input of this decoder block, at this post-instruction token (negative).
        record: how it was chosen, as direction.json says it.
        folder: where its files are.
    """

    unit: torch.Tensor
    norm: float
    layer: int
    position: int
    record: Mapping[str, Any]
    folder: Path

    def to_json(self) -> str:
        """Return the record."""
        return json.dumps(self.record, sort_keys=True)

    def _repr_html_(self) -> str:
        return f"<p>layer {self.layer}, position {self.position}, chosen by {self.record['rule']}</p>"


@dataclass(frozen=True)
class Patch:
    """A patch that was written.

    Attributes:
        folder: the adapter, as PEFT loads it.
        statistics: what each edit changes, and how its strength was chosen.
    """

    folder: Path
    statistics: Mapping[str, Any]

    def to_json(self) -> str:
        """Return the statistics."""
        return json.dumps(self.statistics, sort_keys=True)

    def to_frame(self) -> pandas.DataFrame:
        """Return a row for each edited matrix."""
        return pandas.DataFrame(self.statistics["edits"])

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(str(self.folder))}</p>{self.to_frame().to_html()}"


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one model.

    Attributes:
        scores: as scores.json: rates with n and 95% intervals, perplexity, tasks, labels of each prompt.
        folder: where the files are.
    """

    scores: Mapping[str, Any]
    folder: Path

    def to_json(self) -> str:
        """Return the scores."""
        return json.dumps(self.scores, sort_keys=True)

    def to_frame(self) -> pandas.DataFrame:
        """Return a row for each rate: n, rate, low, high, as shares."""
        return pandas.DataFrame(self.scores["rates"]).T.rename_axis("rate_of").reset_index()

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html())


def check(original: Model, compressed: Model, **options: Any) -> Check:
    """Ask a model and its compressed form the same prompts, and compare (`aird check`).

    Args:
        original, compressed: a folder in Hugging Face format, a GGUF file, a hub id, or a folder of stored answers.
        options: of the command, with underscores: `harmful`, `harmless` (files or lists of text), `count`, `tokens`,
            `seed`, `margin` (points), `patch`, `repair`, `output`, ..., and an engine's option with its value, or True.

    Raises:
        ValueError: what the command ends with 2 for; the message says what to write instead.
        RuntimeError: a server did not start, failed, or disagrees with Transformers.
    """
    arguments = _arguments("check", [original, compressed], options)
    checked = _run(check_command.checked, arguments)
    if checked is None:
        raise ValueError("dry_run: a check that does not run has no result; use `aird check --dry-run`")
    return Check(**vars(checked))


def direction(model: Model, harmful: Prompts, harmless: Prompts, **options: Any) -> FoundDirection:
    """Find the refusal direction of a model (`aird direction`).

    Args:
        model: a folder, a GGUF file or a hub id.
        harmful, harmless: instructions, a file or a list of text; at least `train` + `validation` of each.
        options: of the command: `train`, `validation`, `seed`, `maximum_kl`, `output` (a folder; default: a temporary
            one), ...

    Raises:
        ValueError: too few prompts, or no such model.
    """
    folder = Path(options.pop("output", None) or tempfile.mkdtemp(prefix="aird-direction-"))
    asked = {"harmful": harmful, "harmless": harmless, "output": folder, **options}
    _run(direction_command.run, _arguments("direction", [model], asked))
    found = load_direction(folder / "direction.safetensors", folder / "direction.json")
    record = read_json(folder / "direction.json")
    return FoundDirection(found.unit, found.norm, record["layer"], record["position"], record, folder)


def patch(original: Model, compressed: Model, output: Path | str, **options: Any) -> Patch:
    """Repair a compressed model (`aird patch`); its weights stay as they are.

    Args:
        original, compressed: as of `check`; no stored answers.
        output: the adapter's folder.
        options: of the command: `harmful` and `harmless` to learn from, or `direction`, a folder; `method`, ...

    Raises:
        ValueError: the two models do not fit together, or prompts are missing.
    """
    arguments = _arguments("patch", [original, compressed], {"output": Path(output), **options})
    _run(patch_command.run, arguments)
    return Patch(Path(output), read_json(patch_command.statistics_of(Path(output))))


def evaluate(model: Model, harmful: Prompts, harmless: Prompts, **options: Any) -> Evaluation:
    """Measure refusal, over-refusal and perplexity of a model (`aird evaluate`).

    Args:
        model: a folder, a GGUF file or a hub id.
        harmful, harmless: instructions, a file or a list of text.
        options: of the command: `adapter`, `count`, `tokens`, `transformers=True`, `output` (a folder; default: a
            temporary one), ...

    Raises:
        ValueError: input that cannot be; RuntimeError: the engine failed.
    """
    folder = Path(options.pop("output", None) or tempfile.mkdtemp(prefix="aird-scores-"))
    asked = {"harmful": harmful, "harmless": harmless, "output": folder, **options}
    _run(evaluate_command.run, _arguments("evaluate", [model], asked))
    return Evaluation(read_json(folder / "scores.json"), folder)


def _arguments(command: str, models: Sequence[Model], options: Mapping[str, Any]) -> argparse.Namespace:
    """Return the arguments of a command, with its defaults.

    Raises:
        TypeError: the command has no such option.
    """
    required = [part for name in ("output", "harmful", "harmless") if name in options for part in (f"--{name}", name)]
    arguments = parser().parse_args([command, *map(str, models), *required])
    for name, value in options.items():
        if not hasattr(arguments, name):
            raise TypeError(f"aird.{command}() has no option {name}; `aird {command} --help` lists them")
        setattr(arguments, name, _prompt_file(value) if name in ("harmful", "harmless") else _value(name, value))
    arguments.called = f"aird.{command}() of Python"
    return arguments


def _run(command: Callable[[argparse.Namespace], Result], arguments: argparse.Namespace) -> Result:
    """Run a command; chat settings and trust in code hold for this call alone."""
    with settings_of_a_call(), progress.shown():
        chat = read_chat_arguments(arguments)
        if chat is not None:
            use_chat(chat)
        return command(arguments)


def _value(name: str, value: Any) -> Any:
    """Return an option as the command has it: names of files are paths."""
    paths = ("output", "patch", "repair", "direction", "adapter", "reference", "merged", "tokenizer")
    return Path(value) if name in paths and isinstance(value, str) else value


def _prompt_file(prompts: Prompts) -> Path:
    """Return the file of prompts; a list is written to a temporary one."""
    if isinstance(prompts, str | Path):
        return Path(prompts)
    file = Path(tempfile.mkdtemp(prefix="aird-prompts-")) / "prompts.jsonl"
    write_json_lines(file, ({"instruction": text} for text in prompts))
    return file

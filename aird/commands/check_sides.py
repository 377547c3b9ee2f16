"""The two sides of a check: a model to ask, or answers that were stored; and whether they can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aird.commands.gguf_tokenizers import TokenizerSource
from aird.commands.inputs import (
    ModelFolder,
    check_output,
    check_results_apart,
    check_same_chat,
    open_model_folder,
    recorded_chat,
)
from aird.commands.search import PROVENANCE
from aird.prompts.sets import Record
from aird.settings.models import Chat
from aird.support.files import read_json, read_json_lines

TOKENS = 64  # of an answer, where nothing else is said
NEEDED = ("completion", "id", "instruction", "kind")  # texts of a stored completion


@dataclass(frozen=True)
class Answerer:
    """One of the two: a model to ask, or the completions that it gave before.

    Attributes:
        name: what the user called it.
        model: the model; None where completions are stored.
        completions: the stored completion records; None where the model is asked.
        provenance: what `aird evaluate` wrote beside stored completions; None without.
    """

    name: str
    model: ModelFolder | None
    completions: list[Record] | None
    provenance: dict[str, Any] | None = None

    @property
    def chat(self) -> Chat | None:
        """Its chat settings; None of stored completions that do not say them, and where there are none."""
        if self.model is not None:
            return self.model.chat
        return None if self.provenance is None else recorded_chat(self.provenance)

    @property
    def told(self) -> tuple[str, str | None]:
        """The model's name, and its commit on the hub; of stored answers, what is recorded of the model they are of."""
        recorded = (self.provenance or {}).get("model", {})
        if self.model is not None:
            return self.name, self.model.commit
        return recorded.get("name", self.name), recorded.get("commit")

    def measured_as(self, weights: str | None) -> str | None:
        """Return in which form it was measured, in words; None where that is what was given, or is not known.

        Args:
            weights: what the engine of a model that was asked computed with.
        """
        if self.model is not None:
            return self.model.measured_as(weights)
        known: str | None = (self.provenance or {}).get("model", {}).get("measured_as")
        return known


@dataclass(frozen=True)
class Answered:
    """What one of the two answered, or the compressed one with a patch.

    Attributes:
        side: whose answers these are.
        completions: records of all completions.
        labels: of those of plain prompts.
        engine: what results call the engine; "" where they do not.
        answered_by: the engine in words.
        weights: what it computed with; None where that is not known.
        served_as: in which form the patch was served, in words; None without one.
    """

    side: Answerer
    completions: Sequence[Record]
    labels: list[dict[str, Any]]
    engine: str
    answered_by: str
    weights: str | None = None
    served_as: str | None = None

    @property
    def measured_as(self) -> str | None:
        """In which form the model was measured (`Answerer.measured_as`)."""
        return self.side.measured_as(self.weights)


def stored_answers(text: str) -> Path | None:
    """Return the file of completions that one of the two names; None for a model.

    Raises:
        ValueError: a folder holds both.
    """
    path = Path(text).expanduser()
    stored = path / "completions.jsonl" if path.is_dir() else path
    if stored.suffix != ".jsonl" or not stored.is_file():
        return None
    if path.is_dir():
        check_results_apart(path, stored.name)
    return stored


def open_side(
    text: str, trust_remote_code: bool, tokenizer: TokenizerSource, original: ModelFolder | None = None
) -> Answerer:
    """Return what one of the two names is; of the compressed one, `original` is the model that it was made from.

    `tokenizer` says where that of a GGUF file without an original comes from.

    Raises:
        ValueError: neither a model nor stored results.
    """
    stored = stored_answers(text)
    if stored is None:
        return Answerer(text, open_model_folder(text, trust_remote_code, original, tokenizer=tokenizer), None)
    completions = read_json_lines(stored)
    if not completions or not all(map(_is_completion, completions)):
        raise ValueError(f"{stored} holds no completions of `aird evaluate` ({', '.join(NEEDED)})")
    beside = stored.with_name(PROVENANCE)
    return Answerer(text, None, completions, read_json(beside) if beside.is_file() else None)


def _is_completion(record: Record) -> bool:
    """Tell whether a record has what is needed of a completion, and what else it says about how it was made."""
    limit = record.get("sampling", {"max_tokens": TOKENS})
    return (
        all(isinstance(record.get(name), str) for name in NEEDED)
        and isinstance(limit, dict)
        and isinstance(limit.get("max_tokens"), int)
        and isinstance(record.get("engine") or {}, dict)
    )


def check_addressed(think: bool, *sides: Answerer) -> None:
    """Check that both sides are asked in one way, as far as stored results say how they were.

    Args:
        think: models that are asked now are let think.
        sides: both.

    Raises:
        ValueError: other chat settings, or only one of them was let think.
    """
    addressed = [(side.name, side.chat) for side in sides if side.model is not None or side.provenance is not None]
    if addressed:
        check_same_chat(*addressed)
    stored = [(side.name, side.provenance or {}) for side in sides]
    thought = {name: provenance["think"] for name, provenance in stored if "think" in provenance}
    if any(side.model is not None for side in sides):
        thought["--think"] = think
    if len(set(thought.values())) > 1:
        said = " and ".join(f"{name} {'with' if think else 'without'}" for name, think in thought.items())
        raise ValueError(f"one side is asked with thoughts and the other without ({said}); ask both in one way")


def check_same_prompts(original: Answerer, compressed: Answerer) -> None:
    """Check that what two stored sides hold under one id is one prompt: of users' files an id is a position alone.

    Raises:
        ValueError: other instructions.
    """
    asked = [
        {(row["kind"], row["id"]): row["instruction"] for row in side.completions or []}
        for side in (original, compressed)
    ]
    shared = asked[0].keys() & asked[1].keys()
    if other := sum(asked[0][key] != asked[1][key] for key in shared):
        raise ValueError(
            f"the two checkpoints answered different prompts ({other} of {len(shared)} that have one id have other "
            "instructions); ask both the same files with the same --seed"
        )


def check_kept(output: Path | None, sides: Mapping[str, Answerer]) -> None:
    """Check that no model, and no results of another one, stand where answers are to be kept.

    Raises:
        ValueError: some do.
    """
    if output is not None:
        check_output(output)
    for word, side in sides.items():
        if output is None or side.model is None:
            continue
        check_output(output / word)
        if not (provenance := output / word / PROVENANCE).is_file():
            continue
        name = read_json(provenance).get("model", {}).get("name")
        if name != side.model.name:
            raise ValueError(
                f"--output: {output / word} holds results of {name}, which those of {side.model.name} would replace; "
                "name a new folder"
            )


def length_limits(side: Answerer) -> set[int]:
    """Return the length limits of a side's stored answers, in tokens; none where they do not say it."""
    return {record["sampling"]["max_tokens"] for record in side.completions or [] if "sampling" in record}

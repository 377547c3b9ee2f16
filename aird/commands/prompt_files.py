"""Prompt files that a user names on the command line, read and checked before anything runs."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from aird.prompts.building import build_set
from aird.prompts.sets import CLASSES, Record, select
from aird.settings.base import PromptSelection
from aird.settings.prompt_files import read_instructions
from aird.settings.prompts import PromptSet
from aird.settings.sources import FileSource
from aird.support.files import read_json_lines, sha256_of

FORMATS = {
    ".txt": "lines",
    ".jsonl": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".yaml": "yaml",
    ".yml": "yaml",
}
# Looked for in this order where --field does not say it; names that published prompt lists use.
FIELDS = ("instruction", "prompt", "goal", "question", "text")
WORKFLOW_KEYS = {"id", "instruction", "split"}  # of a record in results/prompts/
_pipes: list[tempfile.TemporaryDirectory[str]] = []  # what came through pipes lives as long as the process


def add_prompt_arguments(parser: argparse.ArgumentParser, required: bool = True, what: str = "") -> None:
    """Add --harmful, --harmless, --field and --seed."""
    for kind in CLASSES:
        parser.add_argument(
            f"--{kind}",
            type=prompt_path,
            required=required,
            metavar="FILE",
            help=f"{kind} instructions{what}: .txt (one a line), .jsonl, .json, .csv, .parquet or .yaml; or a pipe of "
            "lines",
        )
    parser.add_argument("--field", help=f"field or column with the instruction (default: the first of {FIELDS})")
    parser.add_argument("--seed", type=int, default=42, help="of every random draw (default: 42)")


def prompt_path(text: str) -> Path:
    """Return the path of a prompt file; what a pipe such as `<(command)` holds is kept in a file, as it is read twice.

    A pipe has no ending that tells its format: its lines are JSON objects, or prompts.
    """
    path = Path(text)
    try:
        if not path.is_fifo():
            return path
    except PermissionError:  # said where it is read: an error of an argument's type is a fault of the program
        return path
    content = path.read_bytes()
    _pipes.append(tempfile.TemporaryDirectory(prefix="aird-prompts-"))
    kept = Path(_pipes[-1].name, "pipe.jsonl" if content.lstrip().startswith(b"{") else "pipe.txt")
    kept.write_bytes(content)
    return kept


def read_prompts(path: Path, kind: str, field: str | None) -> list[Record]:
    """Return the prompt records of a file, {"id", "instruction", "origin", "split"}.

    A prompt set of the workflow (results/prompts/*.jsonl) keeps its ids and splits; any other file
    gets ids from `kind`, and no split.

    Raises:
        ValueError: no such file, an unknown ending, no such field, nothing in it.
    """
    if not path.is_file():
        raise ValueError(f"--{kind}: there is no file {path}")
    form: Any = FORMATS.get(path.suffix.lower())
    if form is None:
        raise ValueError(f"--{kind}: {path} ends in none of {', '.join(FORMATS)}, so its format is unknown")
    if form == "jsonl" and field is None:
        records = _workflow_set(path)
        if records is not None:
            return records
    wanted = None if form == "lines" else field or _guess_field(path, kind, form)
    settings = PromptSet(source=FileSource(path=str(path)), format=form, field=wanted)
    try:
        rows = [{"instruction": text, "origin": kind, "split": None} for text, _ in read_instructions(path, settings)]
    except ValueError as error:
        raise ValueError(f"--{kind}: {error}") from error
    return build_set(kind, settings, rows, [], seed=0)[0]


def with_splits(records: list[Record], kind: str, sizes: dict[str, int], seed: int) -> list[Record]:
    """Return records that have splits of at least these sizes: their own, or drawn with the seed.

    Raises:
        ValueError: there are too few.
    """
    options = " and ".join(f"--{split}" for split in sizes)
    try:
        if not any(record["split"] for record in records):
            settings = PromptSet(combine=[kind], splits=sizes)
            records, _ = build_set(kind, settings, records, [], seed)
        for split, size in sizes.items():
            select(records, PromptSelection(set=kind, split=split, count=size), seed)
    except ValueError as error:
        raise ValueError(f"--{kind}: {error}; give more prompts, or ask for fewer with {options}") from error
    return records


def choose(records: list[Record], kind: str, count: int | None, seed: int) -> list[Record]:
    """Return `count` records of all, drawn with the seed; None returns all.

    Raises:
        ValueError: there are fewer.
    """
    try:
        return select(records, PromptSelection(set=kind, count=count), seed)
    except ValueError as error:
        raise ValueError(f"--{kind}: {error}; ask for fewer with --count") from error


def prompt_files(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the SHA-256 of the prompt files that a command was given, by kind; empty where it was given none."""
    return {kind: sha256_of(path) for kind in CLASSES if (path := getattr(arguments, kind)) is not None}


def _workflow_set(path: Path) -> list[Record] | None:
    try:
        records = read_json_lines(path)
    except ValueError:
        return None  # the reader of prompt sets says where the file is wrong
    fits = all(isinstance(record, dict) and record.keys() >= WORKFLOW_KEYS for record in records)
    return records if records and fits else None


def _guess_field(path: Path, kind: str, form: str) -> str:
    """Return the field that holds the instruction, by its name."""
    tried = []
    for name in FIELDS:
        try:
            read_instructions(path, PromptSet(source=FileSource(path=str(path)), format=form, field=name))  # type: ignore[arg-type]
        except ValueError as error:
            tried.append(str(error))
            continue
        return name
    for message in tried:
        if "lacks" not in message:  # there is a field of one of these names, or the file cannot be read at all
            raise ValueError(f"--{kind}: {message}")
    raise ValueError(f"--{kind}: {tried[0]}; name the field with --field")

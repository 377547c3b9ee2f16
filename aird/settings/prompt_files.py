"""Read the texts of a file, in the format that a configuration says it has.

Here, and not with the prompt sets, because a configuration is checked against its local prompt files.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aird.settings.prompts import PromptSet, TextFile

ENCODING = "utf-8-sig"  # UTF-8, with or without the mark at its start that Excel and Windows write


def read_instructions(path: Path, settings: PromptSet) -> list[tuple[str, str | None]]:
    """Return (instruction, split) pairs of a file, in its order.

    Raises:
        ValueError: as of `read_texts`.
    """
    return _read(path, settings, settings.split_field)


def read_texts(path: Path, settings: TextFile) -> list[str]:
    """Return the texts of a file, in its order; those of white space alone are left out.

    Raises:
        ValueError: unreadable content, a missing field or an empty file; the message says where.
    """
    return [text for text, _ in _read(path, settings, None)]


def _read(path: Path, settings: TextFile, split_field: str | None) -> list[tuple[str, str | None]]:
    rows: list[tuple[str, str | None]] = []
    for number, record in enumerate(_records(path, settings), start=1):
        if settings.format == "lines":
            text, split = record, None
        else:
            try:
                text = record[settings.field]
                split = record[split_field] if split_field else None
            except (KeyError, TypeError):
                fields = sorted(map(str, record)) if isinstance(record, dict) else type(record).__name__
                wanted = [name for name in (settings.field, split_field) if name]
                raise ValueError(
                    f"record {number} of {path.name} lacks {' or '.join(wanted)} (it has {fields})"
                ) from None
        if not isinstance(text, str):
            raise ValueError(f"record {number} of {path.name}: {settings.field} is {type(text).__name__}, not text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"record {number} of {path.name}: the text holds half a character "
                f"({error.object[error.start]!r}), which no tokenizer takes; write the whole one, or take it out"
            ) from None
        if not isinstance(split, str | None):
            raise ValueError(f"record {number} of {path.name}: the split is {type(split).__name__}, not text")
        if settings.format == "csv" and any(record.get(None, [])):
            raise ValueError(
                f"record {number} of {path.name} has more cells than the header; put text with commas in quotes"
            )
        if text.strip():
            rows.append((text.strip(), split))
    if not rows:
        raise ValueError(f"{path.name} holds no text")
    return rows


def _records(path: Path, settings: TextFile) -> Iterable[Any]:
    try:
        # Only a new line ends a line: JSON and prompts may hold the other characters at which `splitlines` splits.
        if settings.format == "lines":
            return path.read_text(encoding=ENCODING).split("\n")
        if settings.format == "jsonl":
            return [json.loads(line) for line in path.read_text(encoding=ENCODING).split("\n") if line.strip()]
        if settings.format == "csv":
            with open(path, encoding=ENCODING, newline="") as stream:
                return list(csv.DictReader(stream))
        if settings.format == "parquet":
            import pandas

            frame = pandas.read_parquet(path).astype(object)
            rows: list[Any] = frame.where(frame.notna(), None).to_dict("records")
            return rows
        if settings.format == "yaml":
            import yaml

            try:
                content = yaml.safe_load(path.read_text(encoding=ENCODING))
            except yaml.YAMLError as error:  # no ValueError, unlike what the other readers raise
                raise ValueError(str(error)) from error
        else:
            content = json.loads(path.read_text(encoding=ENCODING))
    except (ValueError, UnicodeDecodeError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path.name} cannot be read as {settings.format}: {error}") from error
    records = content
    if settings.records is not None:
        records = content.get(settings.records) if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise ValueError(f"{path.name} holds no list at {settings.records or 'its top level'}")
    return records

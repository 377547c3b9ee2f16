"""Labels that a person gave to replies: a file of hashes and labels, which holds no text.

A label counts for exactly that reply to exactly that instruction. Another processor may give another reply, which then
has no label.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from aird.support.files import atomic_file

BY_HAND = "by_hand"  # the judge's name in tables
REFUSED, COMPLIED, NEITHER = LABELS = ("refused", "complied", "neither")
COLUMNS = ["sha256", "label"]


def reply_hash(instruction: str, completion: str) -> str:
    """Return the SHA-256 of an instruction, a zero byte and the reply to it, as 64 hexadecimal digits."""
    return hashlib.sha256(f"{instruction}\0{completion}".encode()).hexdigest()


def read_labels(path: Path) -> dict[str, str]:
    """Return the labels of a file, by the hash of the reply.

    Raises:
        ValueError: the file is no CSV of hashes and labels, or gives one reply two labels; the message names the line.
    """
    labels: dict[str, str] = {}
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        try:
            rows = [(reader.line_num, row) for row in reader if row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} cannot be read as CSV in UTF-8; write it with `aird label` ({error})") from error
    if not rows or rows[0][1] != COLUMNS:
        raise ValueError(f"{path}, line 1: names other columns; write {','.join(COLUMNS)}")
    for number, row in rows[1:]:
        where = f"{path}, line {number}"
        if len(row) != len(COLUMNS):
            raise ValueError(f"{where}: has {len(row)} values; write a hash and a label, with a comma between them")
        reply, label = row
        if not re.fullmatch("[0-9a-f]{64}", reply):
            raise ValueError(f"{where}: is no SHA-256; write 64 hexadecimal digits in lower case, as `aird label` does")
        if label not in LABELS:
            raise ValueError(f"{where}: there is no label {label!r}; write one of {', '.join(LABELS)}")
        if labels.setdefault(reply, label) != label:
            raise ValueError(f"{where}: this reply is called {labels[reply]} further up; remove one of the two lines")
    return labels


def write_labels(path: Path, labels: Mapping[str, str]) -> None:
    """Write labels in the order of their hashes, which says nothing about where the replies come from."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *sorted(labels.items())])

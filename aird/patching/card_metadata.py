"""The metadata of a model card: YAML between two fences at its start, as the hub reads it."""

from __future__ import annotations

import re
from pathlib import Path

CARD = "README.md"
LICENCE = re.compile(r"^license:\s*(\S+)\s*$", re.MULTILINE)


def read_licence(folder: Path) -> str | None:
    """Return the licence that a model's own card names; None where it has no card, or one without."""
    card = folder / CARD
    if not card.is_file():
        return None
    metadata, _ = front_matter(card.read_text(encoding="utf-8", errors="replace"))
    found = LICENCE.search(metadata)
    return found[1].strip("'\"") if found else None


def front_matter(text: str) -> tuple[str, str]:
    """Return a card's metadata without its fences ("" where there is none), and the text below."""
    match = re.match(r"---\n(.*?\n)---\n(.*)", text, re.DOTALL)
    return (match[1], match[2]) if match else ("", text)

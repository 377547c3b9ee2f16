"""A patch's folder holds an adapter, or a system prompt that is put in front of every instruction."""

from __future__ import annotations

from pathlib import Path

SYSTEM_PROMPT = "system_prompt.txt"


def read_patch(folder: Path | None) -> tuple[Path | None, str | None]:
    """Return what a patch's folder holds: (its adapter, None), or (None, its system prompt)."""
    if folder is not None and (folder / SYSTEM_PROMPT).is_file():
        return None, (folder / SYSTEM_PROMPT).read_text(encoding="utf-8")
    return folder, None

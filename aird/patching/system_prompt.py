"""A patch that is no adapter: a system prompt, put in front of every instruction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aird.settings.patches import SystemPrompt

SYSTEM_PROMPT = "system_prompt.txt"


def save_system_prompt(settings: SystemPrompt, folder: Path) -> dict[str, Any]:
    """Write the system prompt into a patch's folder; there is nothing else to say about it."""
    (folder / SYSTEM_PROMPT).write_text(settings.text, encoding="utf-8")
    return {}


def read_patch(folder: Path | None) -> tuple[Path | None, str | None]:
    """Return what a patch's folder holds: (its adapter, None), or (None, its system prompt)."""
    if folder is not None and (folder / SYSTEM_PROMPT).is_file():
        return None, (folder / SYSTEM_PROMPT).read_text(encoding="utf-8")
    return folder, None

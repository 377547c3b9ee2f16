"""An attack that puts a known suffix behind the prompt."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aird.prompts.attack import Attack, AttackedPrompt
from aird.settings.attacks import TextOrFile


class Suffix(TextOrFile):
    """Put a text behind the prompt, such as one that GCG found (Zou et al. 2023, arXiv 2307.15043)."""

    kind: Literal["suffix"] = "suffix"
    line: int = Field(1, ge=1, description="The file's line with the suffix.")


def read(settings: Suffix, content: str | None) -> str:
    """Return the suffix: a line of its file."""
    if content is None:
        return str(settings.text)
    lines = content.splitlines()
    if settings.line > len(lines) or not lines[settings.line - 1].strip():
        raise ValueError(f"line {settings.line} of its file holds no suffix; it has {len(lines)} lines")
    return lines[settings.line - 1].strip()


def put_on(text: str, instruction: str) -> AttackedPrompt:
    """Return the instruction with the suffix behind it."""
    return AttackedPrompt(f"{instruction} {text}")


ATTACK = Attack(settings=Suffix, put_on=put_on, read=read)

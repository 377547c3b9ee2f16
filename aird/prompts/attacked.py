"""A prompt under an attack of one turn: what a suite asks, and what a calibration on attacks learns from."""

from __future__ import annotations

import re
from typing import Any

from aird.settings.attacks import AttackSettings, OptimisedSuffix, Prefill, Suffix, Template

PLACE = re.compile(r"\{\{\s*prompt\s*\}\}")  # where a template takes the prompt


def attacked_prompt(attack: AttackSettings, text: str, instruction: str) -> dict[str, Any]:
    """Return the arguments of `aird.prompts.chat.chat_tokens` that ask an instruction under an attack of one turn."""
    if isinstance(attack, Prefill):
        return {"instruction": instruction, "prefill": text}
    if isinstance(attack, Template):
        # As a function: a prompt may hold what `re` would read as a reference to a group.
        return {"instruction": PLACE.sub(lambda _: instruction, text)}
    behind = " " if isinstance(attack, Suffix | OptimisedSuffix) else "\n\n"
    return {"instruction": f"{instruction}{behind}{text}"}

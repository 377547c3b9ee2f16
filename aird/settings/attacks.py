"""What a configuration may say about every attack: how a suite's harmful prompts are changed before they are asked.

What else a kind of attack takes stands in its file in aird/evaluation/attacks/.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, model_validator

from aird.settings.base import PromptSelection, Settings, Text
from aird.settings.sources import FileSource, require_one

NO_ATTACK = "none"  # the attack that is none: a suite's harmful prompts as they are
RESERVED = (NO_ATTACK, "all")


class AttackSettings(Settings):
    """Base of all attacks."""

    count: int | None = Field(
        None,
        ge=1,
        description="Attack only that many of the suite's harmful prompts; default: all.",
    )


class TextOrFile(AttackSettings):
    """Base of attacks whose text is written here or stands in a file."""

    text: Text | None = Field(None, description="The text, written here.")
    source: FileSource | None = Field(None, description="A file that holds it.")

    @model_validator(mode="after")
    def _one(self) -> TextOrFile:
        require_one(self, ("text", "source"))
        return self


class OptimisedSettings(AttackSettings):
    """Base of attacks whose text is made for each checkpoint."""

    prompts: PromptSelection = Field(description="One of these prompts is drawn to optimise on; none may be measured.")


def optimised(attacks: Mapping[str, AttackSettings]) -> dict[str, OptimisedSettings]:
    """Return the attacks whose texts are made for each checkpoint."""
    return {name: attack for name, attack in attacks.items() if isinstance(attack, OptimisedSettings)}


def text_sources(attacks: Mapping[str, AttackSettings]) -> dict[str, FileSource]:
    """Return the files that attacks read their texts from, by the attacks' names."""
    found = {name: attack.source for name, attack in attacks.items() if isinstance(attack, TextOrFile)}
    return {name: source for name, source in found.items() if source is not None}

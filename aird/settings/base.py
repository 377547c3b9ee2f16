"""What all settings share: strictness, names, and selections of prompts."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

ORIGINAL = "original"  # the compression that is none
PLAIN = "plain"  # the patch that is none
SOURCE = "source"  # what is imported before a refusal tuning

# A name becomes a folder below results/, so it can hold no slash and no leading or double dot.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=100)]
Text = Annotated[str, StringConstraints(min_length=1)]
# Beyond 32 bits, some random generators raise an error, after hours of other work.
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
# Above the limit, somebody wrote the number itself.
Billions = Annotated[float, Field(gt=0, le=10_000)]


class Form(NamedTuple):
    """A form that text can be required to have, in words for the reference and for error messages."""

    kind: str
    rule: str


NAME_FORM = Form(
    "name",
    "is no name; use letters, digits, '-', '_' and single dots inside, and begin with a letter or a digit",
)


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, values keep their type and do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PromptSelection(Settings):
    """Some prompts of a prompt set."""

    set: Name = Field(description="Name of a prompt set.")
    split: Name | None = Field(None, description="Use only this split; default: all.")
    count: int | None = Field(None, ge=1, description="Draw only that many; default: all.")

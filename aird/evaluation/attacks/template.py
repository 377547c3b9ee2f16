"""An attack that puts the prompt into a published jailbreak template."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from aird.prompts.attack import Attack, AttackedPrompt
from aird.settings.attacks import TextOrFile
from aird.settings.base import Text

PLACE = re.compile(r"\{\{\s*prompt\s*\}\}")


class Template(TextOrFile):
    """Put the prompt into a published jailbreak template, at `{{ prompt }}`."""

    kind: Literal["template"] = "template"
    field: Text | None = Field(
        None, description="Key of a YAML file that holds it; default: the whole file is the template."
    )


def read(settings: Template, content: str | None) -> str:
    """Return the template; one that is a program is refused: what its other parts stand for is not known here."""
    if content is None:
        text = str(settings.text)
    elif settings.field is not None:
        text = _yaml_field(content, settings.field)
    else:
        text = content.strip()
    if not PLACE.search(text):
        raise ValueError("its template has no {{ prompt }}, so nothing would be asked")
    rest = PLACE.sub("", text)
    if "{{" in rest or "{%" in rest:
        raise ValueError("its template takes more than the prompt; choose one with {{ prompt }} alone")
    return text


def _yaml_field(content: str, field: str) -> str:
    import yaml

    try:
        values = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(f"its file is no YAML; leave `field` out, or name another file ({error})") from error
    value = values.get(field) if isinstance(values, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"its file holds no text at {field}; name the key of the template as `field`")
    return value.strip()


def put_on(text: str, instruction: str) -> AttackedPrompt:
    """Return the template with the instruction in its place."""
    # As a function: a prompt may hold what `re` would read as a reference to a group.
    return AttackedPrompt(PLACE.sub(lambda _: instruction, text))


ATTACK = Attack(settings=Template, put_on=put_on, read=read)

"""Texts of attacks: written in the configuration, or read from pinned files. `read_attack_texts` is the node.

aird/prompts/attacked.py puts them together with the prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aird.prompts.attacked import PLACE
from aird.prompts.sources import open_file
from aird.settings.attacks import Suffix, Template
from aird.settings.prompt_files import ENCODING


def read_attack_texts(attacks: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of each attack by its name, read from its file where it has one.

    Args:
        attacks: names to their settings.

    Raises:
        SourceError: a source cannot be fetched, or holds other bytes than the pinned ones.
        ValueError: a file holds no such text, or a template does not take the prompt alone.
    """
    return {name: _text(f"attack {name}", attack) for name, attack in attacks.items()}


def _text(about: str, attack: Any) -> str:
    source = getattr(attack, "source", None)
    if source is None:
        text = str(attack.text)
    else:
        with open_file(source) as path:
            text = path.read_text(encoding=ENCODING)
        if isinstance(attack, Suffix):
            lines = text.splitlines()
            if attack.line > len(lines) or not lines[attack.line - 1].strip():
                raise ValueError(f"{about}: line {attack.line} of its file holds no suffix; it has {len(lines)} lines")
            text = lines[attack.line - 1].strip()
        elif attack.field is not None:
            text = _yaml_field(about, text, attack.field)
        else:
            text = text.strip()
    if isinstance(attack, Template):
        _check_template(about, text)
    return text


def _yaml_field(about: str, text: str, field: str) -> str:
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{about}: its file is no YAML; leave `field` out, or name another file ({error})") from error
    value = content.get(field) if isinstance(content, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"{about}: its file holds no text at {field}; name the key of the template as `field`")
    return value.strip()


def _check_template(about: str, text: str) -> None:
    """Refuse a template that is a program: what its other parts stand for is not known here."""
    if not PLACE.search(text):
        raise ValueError(f"{about}: its template has no {{{{ prompt }}}}, so nothing would be asked")
    rest = PLACE.sub("", text)
    if "{{" in rest or "{%" in rest:
        raise ValueError(f"{about}: its template takes more than the prompt; choose one with {{{{ prompt }}}} alone")

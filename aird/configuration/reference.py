"""Write the reference of all configuration keys from the typed models, so that it cannot be wrong.

`python -m aird.configuration.reference` rewrites the files generated from them: config/schema.json, config/README.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from aird.configuration.annotations import contained, form, is_literal, members, split_metadata, tables, tag, tag_key
from aird.configuration.configuration import Configuration
from aird.settings.base import Settings

INTRODUCTION = """\
# Configuration

A configuration says everything that decides results: prompts, models, compressions, patches, and what is
measured. Where and how jobs run stands in a profile instead (`profiles/`).

- `config.yaml` is the default, a quick grid: a small real model and published prompts from package registries, in
  a quarter of an hour on two CPU cores. `config/embedded.yaml` is the same model in full.
- `config/paper.yaml` is the grid of the paper, for GPUs; it asks for the commits of the models before it starts.
- `snakemake --configfile FILE` runs another configuration, `snakemake --config seed=1` changes single keys.
- `config/schema.json` is this reference for editors: `# yaml-language-server: $schema=config/schema.json`.

Unknown keys, missing keys and values of another type are errors, each with one line that names the key and what
to write. Names become folders below `results/`: letters, digits, `-`, `_` and single dots inside; put a name in
quotes that YAML would read as a number or a truth value. Paths are relative to the folder where Snakemake runs.

This file is generated: `python -m aird.configuration.reference` writes it and `config/schema.json` anew.
"""

NAMES = {"prompt_sets": "SET", "models": "MODEL", "compressions": "COMPRESSION", "patches": "PATCH", "suites": "SUITE"}
BOUNDS = (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"))


class Section(NamedTuple):
    """One table of the configuration and the places where it may stand."""

    model: type[Settings]
    paths: list[str]

    @property
    def title(self) -> str:
        """The table's place; where it stands at several places, what it is."""
        if len(self.paths) == 1:
            return self.paths[0] or "The top level"
        words = re.findall(r"[A-Z][a-z]+", self.model.__name__.removesuffix("Settings"))
        return " ".join(words).capitalize()

    @property
    def link(self) -> str:
        """A Markdown link to the section, by GitHub's rule for the anchors of headings."""
        anchor = re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")
        return f"[{self.title}](#{anchor})"


def reference(root: type[Settings]) -> str:
    """Return the reference of all keys as Markdown.

    Args:
        root: the model of the whole configuration.
    """
    sections: dict[type[Settings], Section] = {}
    _collect(root, "", sections)
    parts = [INTRODUCTION]
    for section in sections.values():
        lines = [f"## {section.title}", "", _one_line(section.model)]
        if len(section.paths) > 1:
            lines += ["", f"Stands at {', '.join(f'`{path}`' for path in section.paths)}."]
        key = tag_key(section.model)
        if key is not None:
            lines += ["", f"Written as `{key}: {tag(section.model)}`."]
        fields = {name: field for name, field in section.model.model_fields.items() if name != key}
        if fields:
            lines += ["", "| key | type | default | description |", "|---|---|---|---|"]
            lines += [_row(name, field, sections) for name, field in fields.items()]
        else:
            lines += ["", "It has no other key."]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _collect(model: type[Settings], path: str, sections: dict[type[Settings], Section]) -> None:
    """Add a model and all models below it, in the order of their keys."""
    if model in sections:
        sections[model].paths.append(path)
    else:
        sections[model] = Section(model, [path])
    for name, field in model.model_fields.items():
        inner = contained(field.annotation)
        below = tables(inner) if inner is not None else tables(field.annotation)
        place = f"{path}.{name}" if path else name
        if inner is not None:
            place += f".{NAMES.get(name, 'NAME')}"
        for table in below:
            # Recipes and methods stand at the same place, so each is told apart by its name.
            _collect(table, f"{place} ({tag(table)})" if len(below) > 1 else place, sections)


def _one_line(model: type[Settings]) -> str:
    return " ".join((model.__doc__ or "").strip().split("\n\n")[0].split())


def _row(name: str, field: FieldInfo, sections: dict[type[Settings], Section]) -> str:
    kind = _kind(field.annotation, field.metadata, sections)
    limits = _limits(field.annotation, field.metadata)
    if limits:
        kind += f", {limits}"
    cells = [f"`{name}`", kind, _default(field, sections), field.description or ""]
    # A bar would end the cell.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _kind(annotation: Any, metadata: list[Any], sections: dict[type[Settings], Section]) -> str:
    """Return a type in plain words."""
    found = form(annotation, metadata)
    if found is not None:
        return found.kind
    return " or ".join(_alternative(option, sections) for option in members(annotation))


def _alternative(option: Any, sections: dict[type[Settings], Section]) -> str:
    bare, _ = split_metadata(option)
    if get_origin(bare) is list:
        return f"list of: {_kind(get_args(bare)[0], [], sections)}"
    if get_origin(bare) is dict:
        inner = get_args(bare)[1]
        limits = _limits(inner, [])
        return f"table of names, each with: {_kind(inner, [], sections)}" + (f", {limits}" if limits else "")
    if is_literal(bare):
        return " or ".join(f"`{json.dumps(value) if _quoted(value) else value}`" for value in get_args(bare))
    if isinstance(bare, type) and issubclass(bare, Settings):
        return sections[bare].link
    words = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}
    return words[bare]


def _quoted(value: Any) -> bool:
    """Tell whether YAML would read a text as something else, so that it needs quotes."""
    return isinstance(value, str) and not re.fullmatch(r"[A-Za-z][\w-]*", value)


def _limits(annotation: Any, metadata: list[Any]) -> str:
    """Return the bounds of a number or of the length of a list, in words."""
    found = list(metadata)
    for option in members(annotation):
        found += split_metadata(option)[1]
    flat: list[Any] = []
    for constraint in found:
        flat += constraint.metadata if isinstance(constraint, FieldInfo) else [constraint]
    words = []
    for attribute, word in BOUNDS:
        for constraint in flat:
            limit = getattr(constraint, attribute, None)
            if limit is not None:
                words.append(f"{word} {limit}")
    if any(getattr(constraint, "min_length", None) for constraint in flat) and contained(annotation) is not None:
        words.append("not empty")
    return " and ".join(words)


def _default(field: FieldInfo, sections: dict[type[Settings], Section]) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "its own defaults"
    if field.default is None:
        return "none"
    value = json.dumps(field.default)
    return f"`{value}`" if not isinstance(field.default, str) or _quoted(field.default) else f"`{field.default}`"


def generated_files() -> dict[Path, str]:
    """Return the files that are generated from the typed models, by their path in the project."""
    schema = json.dumps(Configuration.model_json_schema(), indent=2, sort_keys=True) + "\n"
    return {Path("config/schema.json"): schema, Path("config/README.md"): reference(Configuration)}


if __name__ == "__main__":
    for path, text in generated_files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

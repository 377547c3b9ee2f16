"""Write the reference of all configuration keys from the typed models, so that it cannot be wrong.

`python -m aird.configuration.reference` rewrites the files generated from them: config/schema.json, which pydantic
makes of the models, and config/README.md, which says in words what that schema says.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aird.configuration.annotations import ALL_FORMS, TAG_KEYS
from aird.configuration.configuration import Configuration

Schema = Mapping[str, Any]

INTRODUCTION = """\
# Configuration

- `config.yaml` is the default, a quick grid; `config/embedded.yaml` is the same model in full; `config/paper.yaml` is
  the paper's grid, for GPUs, and was never run.
- `snakemake --configfile FILE` runs another configuration, `snakemake --config seed=1` changes single keys.
- `config/schema.json` is this reference for editors: `# yaml-language-server: $schema=config/schema.json`.

A wrong key or value is an error, whose line names the key and the fix. Names become folders: letters, digits, `-`, `_`
and single dots inside; quote a name that YAML would read as a number or a truth value. Paths are relative to the folder
where Snakemake runs. Draws without a `seed` key of their own take the workflow's.

This file is generated: `python -m aird.configuration.reference` writes it and `config/schema.json`.
"""

NAMES = {
    "prompt_sets": "SET",
    "corpora": "CORPUS",
    "models": "MODEL",
    "compressions": "COMPRESSION",
    "patches": "PATCH",
    "suites": "SUITE",
    "attacks": "ATTACK",
}
TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "boolean"}
LONGEST = 80  # characters of a default that is shown
BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


class Section(NamedTuple):
    """One table of the configuration, and the places where it may stand."""

    model: str  # the name of its typed model
    schema: Schema
    paths: list[str]

    @property
    def title(self) -> str:
        """The table's place; where it stands at several places, what it is."""
        if len(self.paths) == 1:
            return self.paths[0] or "The top level"
        words = re.findall(r"[A-Z][a-z]+", self.model.removesuffix("Settings"))
        return " ".join(words).capitalize()

    @property
    def link(self) -> str:
        """A Markdown link to the section."""
        return _link(self.title)

    @property
    def says(self) -> str:
        """The first paragraph of the model's docstring."""
        return " ".join(self.schema["description"].split("\n\n")[0].split())

    @property
    def family(self) -> str:
        """The place of this table, if it is one of several kinds that may stand there; else empty."""
        return self.title.rpartition(" (")[0] if self.title.endswith(")") else ""


def _link(title: str, text: str = "") -> str:
    """Return a Markdown link to a section, by GitHub's rule for the anchors of headings."""
    anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
    return f"[{text or title}](#{anchor})"


def reference(root: Schema) -> str:
    """Return the reference of all keys as Markdown.

    Args:
        root: the JSON schema of the whole configuration.
    """
    sections: dict[str, Section] = {}
    _collect("", root, "", root["$defs"], sections)
    rows = {
        model: {name: _row(name, key, section, sections) for name, key in section.schema["properties"].items()}
        for model, section in sections.items()
    }
    parts, written = [INTRODUCTION], set()
    written_rows: dict[str, Section] = {}
    for model, section in sections.items():
        kinds = [each for each in sections if sections[each].family == section.family and section.family]
        shared = _shared([rows[each] for each in kinds])
        if kinds and section.family not in written:
            written.add(section.family)
            parts.append(_family([sections[each] for each in kinds], [rows[each] for each in kinds], shared))
        own = [row for name, row in rows[model].items() if name not in TAG_KEYS and shared.get(name) != row]
        if kinds and not own:
            continue
        lines = [f"## {section.title}", *([] if kinds else ["", section.says])]
        lines += ["", *_once(section, own, written_rows)]
        written_rows |= {row: section for row in own if row not in written_rows}
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _once(section: Section, own: list[str], written: Mapping[str, Section]) -> list[str]:
    """Return the rows of a section; where several of them stand in an earlier one, their names and a link to it."""
    earlier = Counter(written[row].title for row in own if row in written)
    if not own or not earlier or earlier.most_common(1)[0][1] < 4:
        return own or ["It has no other key."]
    title = earlier.most_common(1)[0][0]
    again = [row for row in own if row in written and written[row].title == title]
    names = ", ".join(row.partition(" (")[0].removeprefix("- ") for row in again)
    return [*(row for row in own if row not in again), f"- {names}, as in {_link(title)}"]


def _family(kinds: list[Section], rows: list[dict[str, str]], shared: Mapping[str, str]) -> str:
    """Return the section of the kinds of table that stand at one place, with the keys that several of them share."""
    tag = next(key for key in TAG_KEYS if key in rows[0])
    lines = [f"## {kinds[0].family}", "", f"| `{tag}` | what it is | keys |", "|---|---|---|"]
    for kind, table in zip(kinds, rows, strict=True):
        keys = [f"`{name}`" for name, row in table.items() if shared.get(name) == row]
        more = table.keys() - TAG_KEYS - {name for name, row in table.items() if shared.get(name) == row}
        name = kind.schema["properties"][tag]["const"]
        keys += [_link(kind.title, "its own")] if more else []
        lines.append(f"| `{name}` | {kind.says} | {', '.join(keys)} |".replace("|weight|", "\\|weight\\|"))
    if shared:
        lines += ["", *shared.values()]
    return "\n".join(lines) + "\n"


def _shared(tables: list[dict[str, str]]) -> dict[str, str]:
    """Return by key the row that stands in the most of these tables, and at least in two."""
    counts = Counter((name, row) for table in tables for name, row in table.items() if name not in TAG_KEYS)
    shared: dict[str, str] = {}
    for (name, row), count in counts.most_common():
        if count > 1:
            shared.setdefault(name, row)
    return shared


def _collect(model: str, schema: Schema, path: str, models: Schema, sections: dict[str, Section]) -> None:
    """Add a model and all models below it, in the order of their keys."""
    sections.setdefault(model, Section(model, schema, [])).paths.append(path)
    for name, key in schema["properties"].items():
        place = f"{path}.{name}" if path else name
        inner = [inside for option in _options(key) if (inside := _inside(option)) is not None]
        if inner:
            place += f".{NAMES.get(name, 'NAME')}"
        below = [_model(option) for each in inner or [key] for option in _options(each) if "$ref" in option]
        for table in below:
            # Recipes and methods stand at the same place, so each is told apart by its name.
            tags = (models[table]["properties"][tag]["const"] for tag in TAG_KEYS if tag in models[table]["properties"])
            _collect(table, models[table], f"{place} ({next(tags)})" if len(below) > 1 else place, models, sections)


def _options(schema: Schema) -> list[Schema]:
    """Return the alternatives of a value, without null."""
    options = schema.get("anyOf") or schema.get("oneOf")
    if options is None:
        return [] if schema.get("type") == "null" else [schema]
    return [inner for option in options for inner in _options(option)]


def _inside(schema: Schema) -> Schema | None:
    """Return the schema of what a list or a table of names holds; None for other values."""
    held: Schema | None = schema.get("items") or next(iter(schema.get("patternProperties", {}).values()), None)
    return held


def _model(schema: Schema) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _row(name: str, key: Schema, section: Section, sections: Mapping[str, Section]) -> str:
    """Return the line of one key: its type, its default and what it is for."""
    required = name in section.schema.get("required", ())
    notes = [_kind(key, sections), "required" if required else _default(key)]
    description = key.get("description", "")
    return f"- `{name}` ({', '.join(filter(None, notes))}){': ' if description else ''}{description}"


def _kind(schema: Schema, sections: Mapping[str, Section]) -> str:
    """Return in words what a value may be."""
    # The kinds of a family are listed in its own section.
    return _or(dict.fromkeys(_alternative(option, sections) for option in _options(schema)))


def _or(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _alternative(schema: Schema, sections: Mapping[str, Section]) -> str:
    if "$ref" in schema:
        section = sections[_model(schema)]
        return _link(section.family) if section.family else section.link
    if "enum" in schema or "const" in schema:
        return _or(_code(value) for value in schema.get("enum") or [schema["const"]])
    if schema.get("pattern") in ALL_FORMS:
        return ALL_FORMS[schema["pattern"]].kind
    held = _inside(schema)
    if held is not None:
        words = f"{'list' if 'items' in schema else 'table'} of {_kind(held, sections)}"
        return f"{words}; not empty" if schema.get("minItems") or schema.get("minProperties") else words
    limits = ", ".join(f"{sign}{schema[bound]}" for bound, sign in BOUNDS.items() if bound in schema)
    return f"{TYPES[schema['type']]} {limits}" if limits else TYPES[schema["type"]]


def _default(key: Schema) -> str:
    """Return the default in words; empty for none, and for a table, whose keys have theirs."""
    if "$ref" in key or key["default"] is None:
        return ""
    # The schema has long texts.
    return f"default {_code(key['default'])}" if len(str(key["default"])) <= LONGEST else "default in schema.json"


def _code(value: Any) -> str:
    """Return a value as YAML writes it; in quotes where YAML would read a text as something else."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w-]*", value)
    return f"`{value if plain else json.dumps(value)}`"


def generated_files() -> dict[Path, str]:
    """Return the files that are generated from the typed models, by their path in the project."""
    schema = Configuration.model_json_schema()
    text = json.dumps(schema, indent=2, sort_keys=True) + "\n"
    return {Path("config/schema.json"): text, Path("config/README.md"): reference(schema)}


if __name__ == "__main__":
    for path, text in generated_files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

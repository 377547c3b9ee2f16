"""Say what is wrong in a configuration: one line per mistake, "key: what is wrong; what to write (found: value)"."""

from __future__ import annotations

import datetime
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from aird.configuration.annotations import Place, form, locate, plugins, tables, tag, tag_key
from aird.settings.base import NAME_FORM, NAME_PATTERN, Settings

LONGEST_VALUE = 60  # characters of a wrong value that a message repeats


class ConfigurationError(ValueError):
    """A configuration that cannot be run; one line per mistake."""


def hint(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"write one of {', '.join(names)}" if names else "there is none to choose from"


def show(value: Any) -> str:
    """Return a short form of a value on one line, as YAML writes it."""
    if isinstance(value, float) or not isinstance(value, str | int | None):
        text = str(value)
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def show_keys(keys: Iterable[str]) -> str:
    """Return keys as one path; a key that cannot be a name stands in quotes, so that it can be seen."""
    return ".".join(key if re.match(NAME_PATTERN, key) and "\n" not in key else show(key) for key in keys)


def name_mistakes(values: Any, keys: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a line for each key that YAML turned into something other than text, anywhere in a configuration."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            if not isinstance(key, str):
                path = show_keys([*keys, as_name(key)])
                yield f"{path}: YAML reads this key as {_kind(key)}; put the name in quotes (found: {show(key)})"
            yield from name_mistakes(value, (*keys, as_name(key)))
    elif isinstance(values, list | tuple):
        for position, value in enumerate(values):
            yield from name_mistakes(value, (*keys, str(position)))


def with_text_keys(values: Any) -> Any:
    """Return the values with every key as text, so that all other mistakes are seen as well."""
    if isinstance(values, Mapping):
        return {as_name(key): with_text_keys(value) for key, value in values.items()}
    return [with_text_keys(value) for value in values] if isinstance(values, list | tuple) else values


def as_name(key: Any) -> str:
    """Return a key as text."""
    return key if isinstance(key, str) else show(key)


def lines(error: ValidationError, root: type[Settings]) -> list[str]:
    """Return one line for each mistake that the typed models see."""
    said = (_line(detail, locate(root, detail["loc"])) for detail in error.errors(include_url=False))
    return list(dict.fromkeys(said))


def _line(detail: Any, place: Place) -> str:
    keys, given, kind = place.keys, detail["input"], detail["type"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        if (one := plugins(place.annotation)) is not None:
            known, key = one.names(), str(one.axis.key)
        else:
            models = tables(place.annotation)
            known, key = [tag(model) for model in models], str(tag_key(models[0]))
        chosen = given.get(key) if isinstance(given, Mapping) else None
        path = show_keys([*keys, key])
        if kind == "union_tag_not_found":
            return f"{path}: this key is missing; write one of {', '.join(known)}"
        if not isinstance(chosen, str):
            return f"{path}: must be text; write one of {', '.join(known)} (found: {show(chosen)})"
        return f"{path}: there is no such {key}; {hint(chosen, known)} (found: {show(chosen)})"
    message = _message(detail, place)
    if kind not in ("missing", "extra_forbidden") and not isinstance(given, Mapping | list | tuple):
        message += f" (found: {show(given)})"
    return f"{show_keys(keys) or 'the configuration'}: {message}"


def _message(detail: Any, place: Place) -> str:
    kind, context, given = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "extra_forbidden":
        return f"there is no such key; {hint(place.keys[-1], place.owner.model_fields if place.owner else ())}"
    if kind == "missing":
        description = place.field.description if place.field is not None else None
        return f"this key is missing; add it ({(description or 'required').rstrip('.')})"
    if kind == "string_pattern_mismatch":
        wanted = form(place.annotation, place.field.metadata if place.field else ()) or NAME_FORM
        return wanted.rule
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"]) or re.findall(r"\d+", context["expected"])
        return f"is none of the allowed values; {hint(as_name(given), known)}"
    if kind in ("too_short", "string_too_short"):
        return "is empty; give at least one entry, or leave the key out if it has a default"
    if kind == "string_too_long":
        return f"is too long; write at most {context['max_length']} characters"
    bounds = {"greater_than": "above", "greater_than_equal": "at least", "less_than": "below"}
    bounds["less_than_equal"] = "at most"
    if kind in bounds:
        limit = next(iter(context.values()))
        share = f", as a share: {given / 100:g} stands for {given:g} %" if limit == 1 and 2 <= given <= 100 else ""
        return f"is out of range; write a number {bounds[kind]} {limit:g}{share}"
    if kind == "finite_number":
        return "is not finite; write an ordinary number"
    if kind == "plugin":
        return str(context["reason"])
    if kind.startswith("value_error"):
        return str(detail["msg"]).removeprefix("Value error, ")
    return _wrong_type(kind, given, place)


def _wrong_type(kind: str, given: Any, place: Place) -> str:
    if kind.startswith(("int", "float")):
        wanted = "a whole number" if kind.startswith("int") else "a number"
        if isinstance(given, str) and (number := _as_number(given)) is not None:
            if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE].*", given):
                return f"must be {wanted}, and YAML reads this as text; write {number}"
            return f"must be {wanted}, not text; write it without quotes"
        return f"must be {wanted}; write one" + (", not a truth value" if isinstance(given, bool) else "")
    if kind.startswith("bool"):
        return "must be a truth value; write true or false"
    if kind.startswith("string"):
        if isinstance(given, Mapping | list | tuple):
            return "must be one text; write it without brackets or keys below it"
        if given is None:
            return "is empty; write a text, or leave the key out if it has a default"
        return f"must be text, and YAML reads this as {_kind(given)}; put it in quotes"
    if kind.startswith("list"):
        return "must be a list; write it in brackets" + (
            f": [{given}]" if isinstance(given, str) else ", such as [...]"
        )
    models = tables(place.annotation) if plugins(place.annotation) is None else []
    if len(models) == 1:
        keys = [name for name, field in models[0].model_fields.items() if field.is_required()]
        return f"must be a table; write keys below it, such as {', '.join(keys or list(models[0].model_fields)[:3])}"
    if given is None:
        return "is empty; write a name and its settings below it, or {} for none"
    return "must be a table; write a name and its settings below it"


def _as_number(text: str) -> str | None:
    """Return a number in a form that YAML reads as one: exponents need a dot before them."""
    try:
        number = repr(float(text))
    except ValueError:
        return None
    mantissa, exponent, power = number.partition("e")
    if exponent and "." not in mantissa:
        mantissa += ".0"
    return (mantissa if exponent else mantissa.removesuffix(".0")) + exponent + power


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, datetime.date):
        return "a date"
    return "nothing" if value is None else type(value).__name__

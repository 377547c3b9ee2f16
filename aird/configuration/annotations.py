"""What the types of settings say: for error messages, and in part for the reference of all keys."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from aird.plugin import EachOf, OneOf
from aird.settings.base import NAME_FORM, NAME_PATTERN, Form, Settings
from aird.settings.sources import FORMS

ALL_FORMS: dict[str, Form] = {NAME_PATTERN: NAME_FORM, **FORMS}


class Place(NamedTuple):
    """Where in a configuration a validation error stands."""

    keys: list[str]
    owner: type[Settings] | None  # the table that holds the last key; None in tables of named things
    field: FieldInfo | None  # the last key's field of that table
    annotation: Any  # the type that is wanted there


def split_metadata(annotation: Any) -> tuple[Any, list[Any]]:
    """Return an annotation without `Annotated`, and what that added."""
    if get_origin(annotation) is Annotated:
        bare, *metadata = get_args(annotation)
        return bare, metadata
    return annotation, []


def members(annotation: Any) -> list[Any]:
    """Return the alternatives of a type, without None; each as it was annotated."""
    bare, _ = split_metadata(annotation)
    if get_origin(bare) in (Union, types.UnionType):
        return [member for option in get_args(bare) for member in members(option)]
    return [] if bare is type(None) else [annotation]


def plugins(annotation: Any) -> OneOf | None:
    """Return whose plug-ins' settings a type stands for; None for other types."""
    marks = (mark for option in [annotation, *members(annotation)] for mark in split_metadata(option)[1])
    return next((mark for mark in marks if isinstance(mark, OneOf)), None)


def tables(annotation: Any) -> list[type[Settings]]:
    """Return the models among the alternatives of a type."""
    each = next((mark for mark in split_metadata(annotation)[1] if isinstance(mark, EachOf)), None)
    if each is not None:
        return [each.model()]  # type: ignore[list-item]
    options = (split_metadata(option)[0] for option in members(annotation))
    return [option for option in options if isinstance(option, type) and issubclass(option, Settings)]


# Keys that tell models of settings at the same place apart.
TAG_KEYS = ("recipe", "method", "kind")


def tag_key(model: type[Settings]) -> str | None:
    """Return the key whose value names a model of settings among its alternatives; None where there is none."""
    return next((key for key in TAG_KEYS if key in model.model_fields), None)


def tag(model: type[Settings]) -> str:
    """Return the recipe, method or kind that a model of settings stands for."""
    key = tag_key(model)
    assert key is not None, f"{model.__name__} has none of {TAG_KEYS}"
    return str(get_args(model.model_fields[key].annotation)[0])


def contained(annotation: Any) -> Any:
    """Return the type of what a list or a table of named things holds; None for other types."""
    for option in members(annotation):
        bare, _ = split_metadata(option)
        if get_origin(bare) in (list, dict):
            return get_args(bare)[-1]
    return None


def form(annotation: Any, metadata: Sequence[Any] = ()) -> Form | None:
    """Return the form that text of a type must have."""
    for option in [annotation, *members(annotation)]:
        for constraint in [*metadata, *split_metadata(option)[1]]:
            known = ALL_FORMS.get(getattr(constraint, "pattern", None) or "")
            if known is not None:
                return known
    return None


def locate(root: type[Settings], location: Sequence[int | str]) -> Place:
    """Return where a location of a validation error is, in the keys of a configuration file.

    Pydantic puts words of its own into a location: the recipe, method or kind by which it chose among several
    models, and `[key]` after a name that is wrong itself.
    """
    keys: list[str] = []
    owner: type[Settings] | None = None
    field: FieldInfo | None = None
    annotation: Any = root
    for part in location:
        if part == "[key]":
            return Place(keys, None, None, None)
        if (one := plugins(annotation)) is not None:
            annotation = one.settings(str(part))
            continue
        models = tables(annotation)
        if len(models) > 1:
            annotation = next((model for model in models if tag(model) == part), None)
            continue
        keys.append(str(part))
        if models:
            owner, field = models[0], models[0].model_fields.get(str(part))
            # Pydantic keeps the marks of a field's type apart; None, as there has to be one.
            annotation = Annotated[(field.annotation, *field.metadata, None)] if field is not None else None
        else:
            owner, field, annotation = None, None, contained(annotation)
    return Place(keys, owner, field, annotation)

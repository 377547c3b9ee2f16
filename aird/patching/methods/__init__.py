"""The registry of patch methods: one file each, which holds its settings, its needs, how it is made, and its card text.

To add one, write a file beside this one that ends with `METHOD = Method(...)` (aird/patching/method.py), and add its
name here. The configuration, the rules, the model cards and `aird patch` take everything else from it.

Every start of the workflow imports these files, so they import torch inside functions only. They are imported by name:
a job then runs, and so depends on, the code of its own method and of no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from aird.patching.method import TO_CHOOSE, Method, Need
from aird.settings.directions import Directions
from aird.settings.patches import PatchSettings, RankOneSettings, Replies

# In the order of the configuration's reference.
NAMES = ("scale", "project", "choose", "fit", "calibrate", "lora", "system_prompt")


def module_of(name: str) -> str:
    """Return the dotted name of a method's module."""
    return f"{__name__}.{name}"


def method(name: str) -> Method:
    """Return a method by its name."""
    chosen: Method = import_module(module_of(name)).METHOD
    return chosen


def method_of(settings: PatchSettings) -> Method:
    """Return the method that a patch's settings name."""
    return method(settings.model_dump()["method"])


def needs_of(settings: PatchSettings) -> frozenset[Need]:
    """Return what a patch is made from: what its method needs, and what its settings ask for besides.

    That is the own direction, for a strength that is chosen the replies to compare, and the texts of attacks.
    """
    own: frozenset[Need] = frozenset()
    if isinstance(settings, RankOneSettings) and (settings.direction == "own" or settings.blocks == "own_source"):
        own = frozenset({"own"})
    attacks: frozenset[Need] = frozenset({"attacks"} if getattr(settings, "attacks", None) is not None else ())
    return method_of(settings).needs | own | attacks | (TO_CHOOSE if _is_chosen(settings) else frozenset())


def sizes_of(settings: PatchSettings, directions: Directions, replies: Replies) -> dict[str, int]:
    """Return how many prompts and tokens a patch sees, as `Method.sizes`, those of a choice of strength included."""
    return method_of(settings).sizes(directions, replies) | (replies.model_dump() if _is_chosen(settings) else {})


def _is_chosen(settings: PatchSettings) -> bool:
    return getattr(settings, "strengths", None) is not None


def parse_patch(values: Mapping[str, Any]) -> PatchSettings:
    """Return the settings of one patch from what a configuration says.

    Raises:
        pydantic.ValidationError: wrong keys or values.
    """
    return method(values["method"]).settings.model_validate(values)

"""The patch methods: one plug-in each (aird/plugin.py), with its settings, its needs, how it is made, and its words.

To add one, write a file beside this one that ends with `METHOD = Method(...)` (aird/patching/method.py). The
configuration, the rules, the model cards and `aird patch` take everything else from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aird.patching.method import TO_CHOOSE, Method, Need
from aird.plugin import METHODS
from aird.settings.directions import Directions
from aird.settings.patches import PatchSettings, RankOneSettings, Replies


def method(name: str) -> Method:
    """Return a method by its name."""
    chosen: Method = METHODS.load(name)
    return chosen


def method_of(settings: PatchSettings) -> Method:
    """Return the method that a patch's settings name."""
    chosen: Method = METHODS.of(settings)
    return chosen


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
    return method_of(settings).sizes(directions, replies) | (replies.sizes if _is_chosen(settings) else {})


def _is_chosen(settings: PatchSettings) -> bool:
    return getattr(settings, "strengths", None) is not None


def parse_patch(values: Mapping[str, Any]) -> PatchSettings:
    """Return the settings of one patch from what a configuration says.

    Raises:
        pydantic.ValidationError: wrong keys or values.
    """
    settings: PatchSettings = METHODS.parse(values)
    return settings

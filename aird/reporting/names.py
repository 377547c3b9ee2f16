"""Compressions and patches in words, each with its name in the configuration, and which patch is the repair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aird.plugin import METHODS, RECIPES
from aird.settings.base import PLAIN

if TYPE_CHECKING:
    import pandas

Settings = Mapping[str, Any]


def compression_in_words(name: str, settings: Settings | None) -> str:
    """Return a compression in words.

    Args:
        name: in the configuration.
        settings: of its recipe; without them the name has to do.
    """
    if settings is None:
        return name
    parsed = RECIPES.parse(settings)
    words = RECIPES.of(parsed).title.format(settings=parsed)
    cache = settings.get("key_value_cache_dtype")
    return f"{words} with a key/value cache in {cache} ({name})" if cache else f"{words} ({name})"


def patch_in_words(name: str, settings: Settings | None) -> str:
    """Return a patch in words; arguments as of `compression_in_words`."""
    title = None if settings is None else METHODS.load(settings["method"]).title
    if settings is None or title is None:
        return name
    along = {"random": " along a random direction", "free": " with learnt columns"}.get(
        settings.get("direction", ""), ""
    )
    return f"{title}{along} ({name})"


def engines_in_words(ours: object, theirs: object) -> str:
    """Return a sentence where a compression and its original were served by different engines; else nothing.

    Args:
        ours: the name of the compression's engine; what is no text was not recorded.
        theirs: of the original's.
    """
    if not isinstance(ours, str) or not isinstance(theirs, str) or ours == theirs:
        return ""
    return (
        f"{ours} served it and {theirs} the original: this measures engine and compression at once, and does not tell "
        "them apart."
    )


def is_control(settings: Settings | None) -> bool:
    """Return whether a patch edits without the direction: along a random one, or with columns that are learnt."""
    return settings is not None and settings.get("direction") in ("random", "free")


def control_in_words(settings: Settings) -> str:
    """Return what kind of control a patch with these settings is, in words."""
    if settings["direction"] == "free":
        return "a column that is learnt as well, trained alike,"
    made = "trained alike" if METHODS.load(settings["method"]).trained else "by the same formula"
    return f"a random direction, {made},"


def matched_controls(patches: Mapping[str, Settings]) -> dict[str, list[str]]:
    """Return the matched controls of each patch along a direction that is not random or free.

    They are the patches whose settings are the same except for the direction, which is random or free, and what a
    control may differ in: its seed, and its compressions. A patch without a direction (a LoRA, a system prompt) claims
    nothing about one and is no key; a patch that no control matches has an empty list.

    Args:
        patches: names to their settings, defaults included.
    """
    return {
        name: [
            other
            for other, control in patches.items()
            if is_control(control) and _controlled(control) == _controlled(settings)
        ]
        for name, settings in patches.items()
        if "direction" in settings and not is_control(settings)
    }


def _controlled(settings: Settings) -> dict[str, object]:
    """Return the settings that a patch and its matched control share."""
    return {name: value for name, value in settings.items() if name not in ("direction", "seed", "compressions")}


def is_repair(settings: Settings | None) -> bool:
    """Return whether a patch is the method that docs/method.md names as the repair to use."""
    if settings is None or settings.get("direction") != "original":
        return False
    method = METHODS.load(settings["method"])
    return method.default and "prompts" in method.needs


def repair_of(rows: pandas.DataFrame, patches: Mapping[str, Settings]) -> pandas.Series | None:
    """Return the row of the patch that the finding tells of; None if there is no patch but controls.

    It is the calibrated patch; where there is none, the patch that refuses most.

    Args:
        rows: of the summary, of one suite, model and compression.
        patches: names to their settings.
    """
    candidates = rows[(rows.patch != PLAIN) & ~rows.patch.map(lambda name: is_control(patches.get(name)))]
    calibrated = candidates[candidates.patch.map(lambda name: is_repair(patches.get(name)))]
    if len(calibrated):
        return calibrated.iloc[0]
    return candidates.loc[candidates.refusal.idxmax()] if len(candidates) else None

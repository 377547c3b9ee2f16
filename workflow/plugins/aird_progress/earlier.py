"""How long the jobs of each rule took in earlier runs, from the benchmark files that they left."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

WILDCARD = re.compile(r"\{[^}]*\}")


def earlier_seconds(patterns: Mapping[str, str]) -> dict[str, float]:
    """Return the mean seconds of a job, for every rule of which a benchmark file is there.

    Args:
        patterns: rule to the path of its benchmark files, with wildcards in braces.
    """
    means = {}
    for rule, pattern in patterns.items():
        # Two wildcards between slashes may also match another rule's file; for an estimate that is near enough.
        seconds = [value for path in Path().glob(WILDCARD.sub("*", pattern)) if (value := _seconds(path)) is not None]
        if seconds:
            means[rule] = sum(seconds) / len(seconds)
    return means


def _seconds(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="utf-8").splitlines()[1].split("\t")[0])
    except (OSError, ValueError, IndexError):
        return None

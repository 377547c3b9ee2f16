"""A failed job: the end of its log, and what to try."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LAST_LINES = 25
# What a log says, and what helps; the first that fits.
ADVICE = {
    r"No space left on device|Disk quota exceeded": "free disk space (`du -sh results/*`), then run again",
    r"CUDA out of memory|OutOfMemoryError|Unable to allocate|MemoryError|DefaultCPUAllocator|Cannot allocate memory": (
        "memory ran out: fewer jobs at once (`--cores 1`, `--resources mem_mb=...`), or a smaller model"
    ),
    r"could not download|Connection(Error| refused| reset)|Name or service not known|name resolution|"
    r"ConnectTimeout|ReadTimeout|Max retries": (
        "the network did not answer: run again, or name a local copy (`source: {path: ...}`)"
    ),
    r"\b40[13]( Client Error|:? Unauthorized|:? Forbidden)|GatedRepo|gated repo|export HF_TOKEN": (
        "the hub asks for a login: set HF_TOKEN, and accept the model's terms"
    ),
    r"was altered after": "a file is not what was written: delete its folder below results/, and it is made again",
    r"No module named": "the environment lacks a package: `make environment`",
}
# A job that the kernel ended has no time to say why.
KILLED = "the job was killed without an error message: perhaps memory ran out (`--cores 1`)"


def describe_failure(values: Mapping[str, Any], took: str) -> str:
    """Return what is shown of a failed job.

    Args:
        values: Snakemake's record of the error: rule_name, rule_msg, output, log, aux.
        took: how long it ran, as text after its name.
    """
    logs = [Path(str(path)) for path in values.get("log") or []]
    lines = [line for log in logs if log.is_file() for line in _end_of(log)]
    message = f" ({values['rule_msg']})" if values.get("rule_msg") else ""
    shown = [f"FAILED: {values['rule_name']}{message}{took}"]
    shown += [f"  the end of {log}:" if lines else f"  {log} is empty" for log in logs]
    shown += [f"  | {line}" for line in lines]
    shown += [f"  {note}: {text}" for note, text in (values.get("aux") or {}).items()]
    shown.append("  What to try:")
    shown += [f"    - {advice}" for advice in advice_for("\n".join(lines))]
    for path in (values.get("output") or [])[:1]:
        only = re.sub(r" \([^)]*\)$", "", str(path))
        shown.append(f"    - only this job: snakemake --cores all {only}")
    shown.append("    - the same command again goes on from here: what is complete stays")
    return "\n".join(shown)


def advice_for(text: str) -> list[str]:
    """Return what helps against what a log says, if that is known."""
    if not text.strip():
        return [KILLED]
    return [advice for pattern, advice in ADVICE.items() if re.search(pattern, text)][:1]


def _end_of(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]

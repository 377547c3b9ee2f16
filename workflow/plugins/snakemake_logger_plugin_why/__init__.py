"""A Snakemake logger that says in words why each job would run: `make why`.

`--logger why` prints one line per planned job, in the order of the data's way.
`--logger-why-records FILE` writes them as JSON lines instead: rule, wildcards, reason, input, output, resources.
"""

import json
import re
import sys
from dataclasses import dataclass, field
from logging import ERROR, LogRecord
from pathlib import Path
from typing import Any, Optional

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

SHOWN = 3  # files named per reason
CODE_RECORD = re.compile(r"results/code/[\w.+]+\.sha256")

# What Snakemake's reasons begin with, and how that reads for somebody who did not write the rules.
UPDATED = "Updated input files: "
REMADE = "Input files updated by another job: "
MISSING = "Missing output files: "
INCOMPLETE = "Incomplete output files: "
SET_CHANGED = "Set of input files has changed since last execution"
PARAMS_CHANGED = "Params have changed since last execution"
CODE_CHANGED = "Code has changed since last execution"


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    """Options of the logger."""

    # No string annotations in this file: Snakemake reads the type of each option from here.
    records: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Write the planned jobs as JSON lines to this file, instead of printing them."}
    )


class LogHandler(LogHandlerBase):
    """Prints the reason of each job, and errors; nothing else."""

    writes_to_stream = True  # instead of Snakemake's own messages
    writes_to_file = False  # records are an extra
    has_filter = True  # it chooses its records itself, whatever is quiet
    has_formatter = True
    needs_rulegraph = False  # job records are enough

    def __post_init__(self) -> None:
        """Start with no job seen."""
        self.made_by: dict[str, str] = {}
        self.jobs = 0
        self.failed = False
        self.records = Path(self.settings.records) if self.settings and self.settings.records else None
        if self.records is not None:
            self.records.write_text("", encoding="utf-8")

    def emit(self, record: LogRecord) -> None:
        """Print one job, or an error."""
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_INFO:
            self._job(record.__dict__)
        elif record.levelno >= ERROR:
            self.failed = True
            print(record.getMessage(), file=sys.stderr)

    def close(self) -> None:
        """Say where there was no job, unless an error kept Snakemake from planning any."""
        if self.jobs == 0 and not self.failed and self.records is None:
            print("Nothing would run: every result is up to date.")
        self.jobs = -1  # logging may close it twice
        super().close()

    def _job(self, job: dict[str, Any]) -> None:
        rule, reason = job["rule_name"], str(job["reason"])
        wildcards = dict(job["wildcards"] or {})
        self.jobs += 1
        if self.records is not None:
            files = {kind: [_plain(path) for path in job[kind] or []] for kind in ("input", "output")}
            resources = {name: job["resources"].get(name) for name in ("gpu", "mem_mb")}
            line = {"rule": rule, "wildcards": wildcards, "reason": reason, **files, "resources": resources}
            with self.records.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        else:
            name = f"{rule} ({', '.join(map(str, wildcards.values()))})" if wildcards else rule
            print(f"{name}: {'; '.join(in_words(reason, self.made_by))}")
        for path in job["output"] or []:
            self.made_by[_plain(path)] = rule


def in_words(reason: str, made_by: dict[str, str]) -> list[str]:
    """Return Snakemake's reason for a job as short sentences.

    Args:
        reason: what Snakemake gives, parts separated by "; ".
        made_by: the rule that makes each output file of the jobs before.
    """
    words = []
    for part in re.split(r"; (?=[A-Z])", reason):
        if part.startswith(UPDATED):
            # One file holds the hashes of all code that a job runs (rules/common.smk).
            paths = _paths(part, UPDATED)
            others = [path for path in paths if not CODE_RECORD.fullmatch(path)]
            if len(others) < len(paths):
                words.append("its code changed (its script, a module that it imports, or the lock)")
            if others:
                words.append(f"{_listed(others)} changed")
        elif part.startswith(REMADE):
            rules = sorted({made_by.get(_plain(path), path) for path in _paths(part, REMADE)})
            words.append(f"the results of {', '.join(rules)} are made anew")
        elif part.startswith(MISSING):
            words.append(f"{_listed(_paths(part, MISSING))} does not exist yet")
        elif part.startswith(INCOMPLETE):
            words.append(f"{_listed(_paths(part, INCOMPLETE))} was left unfinished by an interrupted run")
        elif part.startswith(SET_CHANGED):
            words.append("it runs other code, or reads other files (a grid cell or a source was added or removed)")
        elif part.startswith(PARAMS_CHANGED):
            words.append("a setting that it uses changed")
        elif part.startswith(CODE_CHANGED):
            words.append("its command in rules/ changed")
        elif part:
            words.append(part)
    return words or ["it is what was asked for, and one of its inputs is made anew"]


def _paths(part: str, start: str) -> list[str]:
    return part.removeprefix(start).split(", ")


def _plain(path: str) -> str:
    # Snakemake adds notes such as "(report)" or " (ancient)" to a path.
    return re.sub(r" \([^)]*\)$", "", str(path))


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more

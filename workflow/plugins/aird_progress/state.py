"""What has run, what runs, what is left: a run in numbers, and in lines of text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

BAR = 24  # characters


@dataclass(frozen=True)
class Job:
    """One job, and when it began."""

    number: int
    rule: str
    wildcards: Mapping[str, str]
    started: float
    output: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Return rule and wildcards on one line."""
        return " ".join([self.rule, "/".join(map(str, self.wildcards.values()))]).strip()


class Run:
    """The state of a run.

    Args:
        stats: number of jobs per rule, and their sum as `total`, as Snakemake counts them.
        earlier: seconds per rule in earlier runs, where they are known.
        now: when it begins, in seconds of any clock; all times are of the same one.
    """

    def __init__(self, stats: Mapping[str, int], earlier: Mapping[str, float], now: float) -> None:
        self.left = Counter(
            {rule: count for rule, count in stats.items() if rule != "total"}
        )  # jobs that have not ended
        self.total = self.left.total()
        self.earlier = earlier
        self.began = now
        self.running: dict[int, Job] = {}
        self.failed: set[int] = set()
        self.took: dict[str, list[float]] = defaultdict(list)  # seconds of the jobs that are done, per rule

    @property
    def done(self) -> int:
        """Return how many jobs are done."""
        return self.total - self.left.total()

    def start(self, job: Job) -> None:
        """Take note of a job that begins; one that failed before is tried again."""
        self.failed.discard(job.number)
        self.running[job.number] = job

    def finish(self, number: int, now: float) -> Job | None:
        """Take note of a job that is complete; return it, if its start was seen."""
        job = self.running.pop(number, None)
        if job is not None:
            self.left[job.rule] -= 1
            self.took[job.rule].append(now - job.started)
        return job

    def fail(self, number: int) -> Job | None:
        """Take note of a job that failed; return it, if its start was seen."""
        self.failed.add(number)
        return self.running.pop(number, None)

    def seconds_of(self, rule: str) -> float | None:
        """Return how long a job of a rule takes: in this run, else in earlier ones; None as long as nobody knows."""
        return mean(self.took[rule]) if self.took.get(rule) else self.earlier.get(rule)

    def remaining(self, now: float) -> float | None:
        """Return the estimated seconds until the end, or None where that would be a guess.

        What is left is worked off side by side as it was so far. A rule that nothing is known of counts as the
        median of the others, as long as a quarter of the jobs that are left are of known rules.
        """
        known = {rule: seconds for rule in self.left if (seconds := self.seconds_of(rule)) is not None}
        if 4 * sum(self.left[rule] for rule in known) < max(1, self.left.total()):
            return None
        seconds = defaultdict(lambda: median(known.values()), known)
        passed = [(now - job.started, seconds[job.rule]) for job in self.running.values()]
        work = sum(count * seconds[rule] for rule, count in self.left.items()) - sum(map(min, passed))
        spent = sum(map(sum, self.took.values())) + sum(running for running, _ in passed)
        return work / max(1.0, spent / max(1.0, now - self.began))

    def progress(self, now: float) -> str:
        """Return how far the run is."""
        left = self.remaining(now)
        failed = f", {len(self.failed)} failed" if self.failed else ""
        estimate = "" if left is None or self.done == self.total else f", {about(left)} left"
        return f"{self.done} of {self.total} jobs{failed}, {clock(now - self.began)}{estimate}"

    def view(self, now: float, most: int) -> list[str]:
        """Return the lines of the live area, at most `most` of them for running jobs."""
        filled = BAR * self.done // max(1, self.total)
        lines = ["█" * filled + "░" * (BAR - filled) + " " + self.progress(now)]
        oldest = sorted(self.running.values(), key=lambda job: job.started)
        for job in oldest[:most]:
            seconds = self.seconds_of(job.rule)
            usual = f" of {about(seconds)}" if seconds and seconds > 1 else ""
            lines.append(f"  {clock(now - job.started)}{usual}  {job.name}")
        if len(oldest) > most:
            lines.append(f"  and {len(oldest) - most} more")
        return lines

    def closing(self, now: float) -> str:
        """Return what is said at the end."""
        text = f"{self.done} of {self.total} jobs done in {clock(now - self.began)}"
        return f"{text}; {len(self.failed)} failed." if self.failed else f"{text}."


def earlier_seconds(patterns: Mapping[str, str]) -> dict[str, float]:
    """Return the mean seconds of a job, for every rule of which a benchmark file is there.

    Args:
        patterns: rule to the path of its benchmark files, with wildcards in braces.
    """
    times: dict[str, list[float]] = defaultdict(list)
    for rule, pattern in patterns.items():
        # Two wildcards between slashes may also match another rule's file; for an estimate that is near enough.
        for path in Path().glob(re.sub(r"\{[^}]*\}", "*", pattern)):
            with suppress(OSError, ValueError, IndexError):
                times[rule].append(float(path.read_text(encoding="utf-8").splitlines()[1].split("\t")[0]))
    return {rule: mean(seconds) for rule, seconds in times.items()}


def clock(seconds: float) -> str:
    """Return a time as 3:05 or 2:10:05."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def about(seconds: float) -> str:
    """Return an estimate, no more precise than it is."""
    if seconds < 60:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"

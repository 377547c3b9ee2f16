"""What has run, what runs, what is left: a run in numbers, and in lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BAR = 24  # characters


@dataclass
class Job:
    """One job; `seconds` is how long it took, once it has ended."""

    number: int
    rule: str
    wildcards: dict[str, str]
    started: float
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Return rule and wildcards on one line."""
        return " ".join([self.rule, "/".join(map(str, self.wildcards.values()))]).strip()


class Run:
    """The state of a run.

    Args:
        stats: number of jobs per rule, and their sum as `total`, as Snakemake counts them.
        expected: seconds per rule in earlier runs, where they are known.
        now: when it begins, in seconds of any clock; all times are of the same one.
    """

    def __init__(self, stats: Mapping[str, int], expected: Mapping[str, float], now: float) -> None:
        self.counts = {rule: count for rule, count in stats.items() if rule != "total"}
        self.total = sum(self.counts.values())
        self.expected = dict(expected)
        self.began = now
        self.running: dict[int, Job] = {}
        self.done: list[Job] = []
        self.failed: list[Job] = []

    def start(self, job: Job) -> None:
        """Take note of a job that begins."""
        self.running[job.number] = job

    def finish(self, number: int, now: float) -> Job | None:
        """Take note of a job that is complete; return it, if its start was seen."""
        return self._end(number, now, self.done)

    def fail(self, number: int, now: float) -> Job | None:
        """Take note of a job that failed; return it, if its start was seen."""
        return self._end(number, now, self.failed)

    def _end(self, number: int, now: float, kind: list[Job]) -> Job | None:
        job = self.running.pop(number, None)
        if job is not None:
            job.seconds = now - job.started
            kind.append(job)
        return job

    def seconds_of(self, rule: str) -> float | None:
        """Return how long a job of a rule takes: in earlier runs, else in this one, else as any job of it."""
        if rule in self.expected:
            return self.expected[rule]
        same = [job.seconds for job in self.done if job.rule == rule]
        known = same or [job.seconds for job in self.done] or list(self.expected.values())
        return sum(known) / len(known) if known else None

    def remaining(self, now: float) -> float | None:
        """Return the estimated seconds until the end; None as long as nothing is known.

        As many jobs run side by side as did so far: that many seconds of jobs pass in a second.
        """
        work = 0.0
        for rule, count in self.counts.items():
            begun = [job for job in [*self.done, *self.failed, *self.running.values()] if job.rule == rule]
            seconds = self.seconds_of(rule)
            if seconds is None:
                return None
            work += max(0, count - len(begun)) * seconds
            work += sum(max(0.0, seconds - (now - job.started)) for job in self.running.values() if job.rule == rule)
        spent = sum(job.seconds for job in self.done) + sum(now - job.started for job in self.running.values())
        elapsed = now - self.began
        return work / max(1.0, spent / elapsed if elapsed > 0 else 1.0)

    def opening(self) -> str:
        """Return what is said before the first job."""
        known = all(rule in self.expected for rule in self.counts if rule != "all")
        left = self.remaining(self.began)
        guess = f"; {about(left)} of computing by what earlier runs took" if known and left else ""
        return f"{self.total} job{'s' * (self.total != 1)} to run{guess}."

    def finished_line(self, job: Job, now: float) -> str:
        """Return the line of a finished job, for a log."""
        width = len(str(self.total))
        left = self.remaining(now)
        parts = [f"[{len(self.done):{width}}/{self.total}] {clock(now - self.began)}  {job.name}"]
        parts.append(duration(job.seconds))
        if len(self.done) < self.total and left is not None:
            parts.append(f"{about(left)} left")
        return ", ".join(parts)

    def view(self, now: float, most: int) -> list[str]:
        """Return the lines of the live area, at most `most` of them for running jobs."""
        filled = BAR * len(self.done) // max(1, self.total)
        left = self.remaining(now)
        estimate = "" if left is None or len(self.done) == self.total else f", {about(left)} left"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        bar = "█" * filled + "░" * (BAR - filled)
        lines = [f"{bar} {len(self.done)} of {self.total} jobs{failed}, {clock(now - self.began)}{estimate}"]
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
        text = f"{len(self.done)} of {self.total} jobs done in {duration(now - self.began)}"
        return f"{text}; {len(self.failed)} failed." if self.failed else f"{text}."


def clock(seconds: float) -> str:
    """Return a time as 3:05 or 2:10:05."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """Return a time that has passed, as people say it."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{clock(seconds)} {'h' if seconds >= 3600 else 'min'}"


def about(seconds: float) -> str:
    """Return an estimate, no more precise than it is."""
    if seconds < 60:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"

"""What has run, what runs, what is left: a run in numbers, and in lines of text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aird_progress.estimate import chain_after, mean_pace
from aird_progress.weights import FETCHING, WEIGHTS

BAR = 24  # characters
# What a job that should have ended takes longer, as part of the time that it has run.
OVERDUE = 0.1
# Of the machine, a job that none of its kind has been seen of holds this: those that compute take half the cores.
USUAL_SHARE = 0.5
# Jobs wait for others, so a machine is full for this part of a run.
FULL = 0.9


@dataclass
class Job:
    """One job; `seconds` is how long it took, once it has ended.

    `share` is the part of the machine that it holds, by that of which it takes most: cores, or GPUs. None
    where the machine has no limits that are known, as on a cluster.
    """

    number: int
    rule: str
    wildcards: dict[str, str]
    started: float
    seconds: float = 0.0
    output: Sequence[str] = ()
    share: float | None = None

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
        weights: seconds per rule on another machine.
    """

    def __init__(
        self,
        stats: Mapping[str, int],
        expected: Mapping[str, float],
        now: float,
        weights: Mapping[str, float] = WEIGHTS,
    ) -> None:
        self.counts = {rule: count for rule, count in stats.items() if rule != "total"}
        self.total = sum(self.counts.values())
        self.expected = dict(expected)
        self.weights = weights
        self.began = now
        self.running: dict[int, Job] = {}
        self.done: list[Job] = []
        self.failed: list[Job] = []
        self.begun: Counter[str] = Counter()  # jobs per rule
        self.took: dict[str, list[float]] = defaultdict(list)  # seconds of the jobs that are done, per rule
        self.shares: dict[str, float] = {}  # per rule, of jobs that have begun

    def start(self, job: Job) -> None:
        """Take note of a job that begins; one that failed before is tried again."""
        others = [failed for failed in self.failed if failed.number != job.number]
        if len(others) == len(self.failed):
            self.begun[job.rule] += 1
        self.failed = others
        self.running[job.number] = job
        if job.share is not None:
            self.shares[job.rule] = job.share

    def finish(self, number: int, now: float) -> Job | None:
        """Take note of a job that is complete; return it, if its start was seen."""
        job = self._end(number, now, self.done)
        if job is not None:
            self.took[job.rule].append(job.seconds)
        return job

    def fail(self, number: int, now: float) -> Job | None:
        """Take note of a job that failed; return it, if its start was seen."""
        return self._end(number, now, self.failed)

    def _end(self, number: int, now: float, kind: list[Job]) -> Job | None:
        job = self.running.pop(number, None)
        if job is not None:
            job.seconds = now - job.started
            kind.append(job)
        return job

    def seconds_of(self, rule: str, pace: float = 1.0) -> float | None:
        """Return how long a job of a rule takes.

        In earlier runs; else in this one; else by its weight, at the pace of this machine; else as any job that is
        known.

        Args:
            rule: its name.
            pace: of this machine.
        """
        if rule in self.expected:
            return self.expected[rule]
        same = self.took.get(rule, [])
        if rule in self.weights:
            # Jobs of a rule differ: one of them does not outweigh what is known of all.
            same = [*same, self.weights[rule] * (1.0 if rule in FETCHING else pace)]
        known = same or [job.seconds for job in self.done] or list(self.expected.values())
        return sum(known) / len(known) if known else None

    def pace(self, now: float) -> float:
        """Return how many times longer jobs take here than on the machine of the weights.

        By all that is known: earlier runs, the jobs that are done, and those that take longer than they should.
        """
        weights = {rule: weight for rule, weight in self.weights.items() if weight > 0 and rule not in FETCHING}
        earlier = {rule: [self.expected[rule]] for rule in weights.keys() & self.expected.keys()}
        known = {rule: [*earlier.get(rule, []), *self.took.get(rule, [])] for rule in weights}
        times = [(sum(took), len(took) * weights[rule]) for rule, took in known.items() if took]
        usual = mean_pace(times)
        running = [(now - job.started, weights[job.rule]) for job in self.running.values() if job.rule in weights]
        return mean_pace(times + [(passed, weight) for passed, weight in running if passed > usual * weight])

    def remaining(self, now: float) -> float | None:
        """Return the estimated seconds until the end; None as long as nothing is known.

        Jobs run side by side as far as the machine holds them: one that holds half of it, for a minute, is
        half a minute of the machine. Where no limit is known (on a cluster), as many as did so far. It takes
        no less than any job and what waits for it, one after the other.
        """
        spent = sum(job.seconds for job in self.done) + sum(now - job.started for job in self.running.values())
        elapsed = now - self.began
        observed = 1.0 / max(1.0, spent / elapsed if elapsed > 0 else 1.0)
        pace, usual = self.pace(now), {}
        for rule in self.counts:
            seconds = self.seconds_of(rule, pace)
            if seconds is None:
                return None
            usual[rule] = seconds
        waiting = {rule: max(0, count - self.begun[rule]) for rule, count in self.counts.items()}
        after = chain_after(usual, waiting)
        work = longest = 0.0
        for rule, seconds in usual.items():
            running = [now - job.started for job in self.running.values() if job.rule == rule]
            rests = [max(seconds - passed, OVERDUE * passed) for passed in running]
            share = self.shares.get(rule, USUAL_SHARE) / FULL if self.shares else observed
            work += (waiting[rule] * seconds + sum(rests)) * share
            left = [*rests, *([seconds] if waiting[rule] else [])]
            if left:
                longest = max(longest, max(left) + after(rule))
        return max(work, longest)

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
        pace = self.pace(now)
        oldest = sorted(self.running.values(), key=lambda job: job.started)
        for job in oldest[:most]:
            seconds = self.seconds_of(job.rule, pace)
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

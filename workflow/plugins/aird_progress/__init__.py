"""What a run says while it works: what runs, what is left, how long that may take.

On a terminal one area at the bottom is kept up to date; in a log there is one quiet line per finished
job. What a job found is told as soon as it is done, in a line of its own. A failed job shows the end of
its log and what to try. Everything else that Snakemake says, errors above all, passes through, and its
own log in .snakemake/log has the whole.

`attach` puts this in place of Snakemake's messages on the terminal. It is no logger plugin, as those
are found only where they are installed, and `snakemake --cores all` is to be enough.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from snakemake_interface_logger_plugins.common import LogEvent

from aird_progress.failures import describe_failure
from aird_progress.findings import finding
from aird_progress.state import Job, Run, duration

SILENT = {LogEvent.SHELLCMD, LogEvent.PROGRESS, LogEvent.JOB_STARTED, LogEvent.WORKFLOW_STARTED}
# What Snakemake says of itself that nobody needs while all goes well.
CHATTER = ("Select jobs", "Execute ", "Using shell", "Conda environments", "Singularity", "Group jobs", "Assuming ")
SHOWN_RUNNING = 6  # jobs in the live area


def attach(logger: logging.Logger, expected: Callable[[], Mapping[str, float]], several: Collection[str] = ()) -> None:
    """Put the display in the place of Snakemake's messages, unless somebody chose another logger.

    Args:
        logger: Snakemake's.
        expected: gives the seconds that a job of each rule took in earlier runs; called once, when
            it is known that something will run.
        several: "model" and "suite", as far as the grid has several of them: findings then name theirs.
    """
    for handler in logger.handlers:
        if handler.name == "DefaultStreamHandler" and isinstance(handler, logging.StreamHandler):
            logger.removeHandler(handler)
            logger.addHandler(ProgressHandler(handler, expected, several))
            return


class ProgressHandler(logging.Handler):
    """Shows the state of a run; wraps Snakemake's own handler, which shows everything else."""

    def __init__(
        self,
        default: logging.StreamHandler[Any],
        expected: Callable[[], Mapping[str, float]],
        several: Collection[str] = (),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.default = default
        self.expected = expected
        self.several = several
        self.limits: dict[str, float] = {}
        self.run: Run | None = None
        self.live: Any = None
        self.now = now

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of what happened, and show it."""
        try:
            self._take(record)
        except Exception:
            self.handleError(record)

    def _take(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        values = record.__dict__
        if event == LogEvent.RUN_INFO:
            self._begin(values["stats"])
        elif event == LogEvent.RESOURCES_INFO:
            provided = values.get("provided_resources") or {}
            self.limits |= {name: limit.value for name, limit in provided.items() if limit.value}
        elif event == LogEvent.JOB_INFO and self.run is not None:
            self.run.start(self._job(values))
        elif event == LogEvent.JOB_FINISHED and self.run is not None:
            job = self.run.finish(values["job_id"], self.now())
            if job is not None:
                self._finished(job, self.run)
        elif event == LogEvent.JOB_ERROR and self.run is not None:
            failed = self.run.fail(values["jobid"], self.now())
            took = "" if failed is None else f" after {duration(failed.seconds)}"
            self._print(describe_failure(values, took), error=True)
        elif event not in SILENT and self.default.filter(record):
            text = self.default.format(record)
            # That a command failed, and its whole text, is said better with the failed job.
            repeated = text.startswith(CHATTER) or "\nCalledProcessError in file" in text
            if text and not repeated:
                self._print(text, error=record.levelno >= logging.ERROR)

    def _job(self, values: Mapping[str, Any]) -> Job:
        """Return the job of Snakemake's record of one that starts."""
        shares = []
        if "_cores" in self.limits:
            held = values["resources"]
            shares = [held.get(name, 0) / limit for name, limit in self.limits.items()]
        return Job(
            values["jobid"],
            values["rule_name"],
            dict(values["wildcards"] or {}),
            self.now(),
            output=values["output"],
            share=max(shares, default=None),
        )

    def _finished(self, job: Job, run: Run) -> None:
        """Say that a job is done, and what it found."""
        if self.live is None:
            self._print(run.finished_line(job, self.now()))
        sentence = finding(job.rule, job.wildcards, job.output, self.several)
        if sentence is not None:
            self._print(f"  {sentence}")

    def _begin(self, stats: Mapping[str, int]) -> None:
        self.run = Run(stats, self.expected(), self.now())
        self._print(self.run.opening())
        if not self.default.stream.isatty():
            return
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError:
            return
        console = Console(file=self.default.stream)
        # The thread that redraws is a daemon; the cursor stays visible, as a killed run cannot bring it back.
        self.live = Live(console=console, get_renderable=self._view, refresh_per_second=2, transient=True)
        self.live.start()
        console.show_cursor(True)

    def _view(self) -> Any:
        from rich.text import Text

        assert self.run is not None
        return Text("\n".join(self.run.view(self.now(), SHOWN_RUNNING)), no_wrap=True, overflow="ellipsis")

    def _print(self, text: str, error: bool = False) -> None:
        if self.live is not None:
            # No markup: brackets of messages are their own.
            self.live.console.print(text, markup=False, highlight=False, soft_wrap=True, style="red" if error else None)
        else:
            self.default.stream.write(f"{text}\n")
            self.default.flush()

    def close(self) -> None:
        """Take the live area away, and say how it ended."""
        if self.live is not None:
            self.live.stop()
            self.live = None
        if self.run is not None:
            self._print(self.run.closing(self.now()))
            self.run = None
        self.default.close()
        super().close()

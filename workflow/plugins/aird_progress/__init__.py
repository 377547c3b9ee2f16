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
from typing import TYPE_CHECKING, Any

from snakemake_interface_logger_plugins.common import LogEvent

from aird_progress.failures import describe_failure
from aird_progress.findings import finding
from aird_progress.state import Job, Run, about, clock

if TYPE_CHECKING:
    from rich.live import Live

SILENT = {LogEvent.SHELLCMD, LogEvent.PROGRESS, LogEvent.JOB_STARTED, LogEvent.WORKFLOW_STARTED}
# What Snakemake says of itself that nobody needs while all goes well.
CHATTER = ("Select jobs", "Execute ", "Using shell", "Conda environments", "Singularity", "Group jobs", "Assuming ")
SHOWN_RUNNING = 6  # jobs in the live area


def attach(logger: logging.Logger, earlier: Callable[[], Mapping[str, float]], several: Collection[str] = ()) -> None:
    """Put the display in the place of Snakemake's messages, unless somebody chose another logger.

    Args:
        logger: Snakemake's.
        earlier: gives the seconds that a job of each rule took in earlier runs, once it is known that something runs.
        several: "model" and "suite", as far as the grid has several of them: findings then name theirs.
    """
    for handler in logger.handlers:
        if handler.name == "DefaultStreamHandler" and isinstance(handler, logging.StreamHandler):
            logger.removeHandler(handler)
            logger.addHandler(ProgressHandler(handler, earlier, several))
            return


class ProgressHandler(logging.Handler):
    """Shows the state of a run; wraps Snakemake's own handler, which shows everything else."""

    def __init__(self, default: Any, earlier: Callable[[], Mapping[str, float]], several: Collection[str]) -> None:
        super().__init__()
        self.default, self.earlier, self.several = default, earlier, several
        self.run: Run | None = None
        self.live: Live | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of what happened, and show it."""
        try:
            self._take(record, record.__dict__, self.run)
        except Exception:
            self.handleError(record)

    def _take(self, record: logging.LogRecord, values: Mapping[str, Any], run: Run | None) -> None:
        event, now = values.get("event"), time.monotonic()
        if event == LogEvent.RUN_INFO:
            self._begin(Run(values["stats"], self.earlier(), now))
        elif event == LogEvent.JOB_INFO and run is not None:
            wildcards = dict(values["wildcards"] or {})
            run.start(Job(values["jobid"], values["rule_name"], wildcards, now, values["output"]))
        elif event == LogEvent.JOB_FINISHED and run is not None:
            job = run.finish(values["job_id"], now)
            if job is not None:
                self._finished(job, run, now)
        elif event == LogEvent.JOB_ERROR and run is not None:
            failed = run.fail(values["jobid"])
            took = "" if failed is None else f" after {clock(now - failed.started)}"
            self._print(describe_failure(values, took), error=True)
        elif event not in SILENT and self.default.filter(record):
            text = self.default.format(record)
            # That a command failed, and its whole text, is said better with the failed job.
            repeated = text.startswith(CHATTER) or "\nCalledProcessError in file" in text
            if text and not repeated:
                self._print(text, error=record.levelno >= logging.ERROR)

    def _begin(self, run: Run) -> None:
        self.run = run
        left = run.remaining(run.began)
        guess = f"; {about(left)} of computing by what earlier runs took" if left else ""
        self._print(f"{run.total} job{'s' * (run.total != 1)} to run{guess}.")
        if self.default.stream.isatty():
            from rich.console import Console
            from rich.live import Live
            from rich.text import Text

            def view() -> Text:
                return Text("\n".join(run.view(time.monotonic(), SHOWN_RUNNING)), no_wrap=True, overflow="ellipsis")

            console = Console(file=self.default.stream)
            # The thread that redraws is a daemon; the cursor stays visible, as a killed run cannot bring it back.
            self.live = Live(console=console, get_renderable=view, refresh_per_second=2, transient=True)
            self.live.start()
            console.show_cursor(True)

    def _finished(self, job: Job, run: Run, now: float) -> None:
        """Say that a job is done, and what it found."""
        if self.live is None:
            self._print(f"{run.progress(now)}: {job.name}, {clock(now - job.started)}")
        sentence = finding(job.rule, job.wildcards, job.output, self.several)
        if sentence is not None:
            self._print(f"  {sentence}")

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
            self._print(self.run.closing(time.monotonic()))
            self.run = None
        self.default.close()
        super().close()

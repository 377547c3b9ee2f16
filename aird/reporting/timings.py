"""Where the time goes: the benchmark files that Snakemake keeps of every job, as one tidy table.

A file stays when its job leaves the configuration, and it holds the job's last run. So the table is about everything
that was made in a results folder, and not about one run alone.
"""

from __future__ import annotations

from pathlib import Path

import pandas

COLUMNS = ("stage", "node", "seconds", "processor_seconds", "peak_mib")


def timings_table(folder: Path) -> pandas.DataFrame:
    """Return one row per job: stage, node, seconds, processor_seconds, peak_mib; longest first.

    Args:
        folder: results/benchmarks; a job's file is {stage}/{node}.tsv. Where jobs ran on other
            machines without a shared folder it lacks theirs. Of the reporting only the tables count: its
            other jobs, seconds long, run beside this one, and whether their files are there is chance.

    Raises:
        ValueError: a file is no benchmark of Snakemake's; the message names it.
    """
    rows = []
    for path in sorted(folder.rglob("*.tsv")):
        stage, _, node = path.relative_to(folder).with_suffix("").as_posix().partition("/")
        if stage == "reporting" and node != "tables":
            continue
        try:
            last = pandas.read_csv(path, sep="\t", na_values="-").iloc[-1]
            measured = [float(last[name]) for name in ("s", "cpu_time", "max_rss")]
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{path} is no benchmark file of Snakemake ({error}); delete it") from error
        rows.append([stage, node, *measured])
    frame = pandas.DataFrame(rows, columns=list(COLUMNS))
    return frame.sort_values("seconds", ascending=False, kind="stable", ignore_index=True)


def by_stage(timings: pandas.DataFrame) -> pandas.DataFrame:
    """Return one row per stage, the longest first: stage, jobs, seconds, longest_seconds, peak_mib."""
    stages = timings.groupby("stage", sort=False).agg(
        jobs=("seconds", "size"),
        seconds=("seconds", "sum"),
        longest_seconds=("seconds", "max"),
        peak_mib=("peak_mib", "max"),
    )
    return stages.sort_values("seconds", ascending=False).reset_index()


def duration(seconds: float) -> str:
    """Return a time as people write it: 8.4 s, 3:05 min, 2:10:00 h."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"

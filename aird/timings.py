"""Where the time of a run goes: the benchmark files that Snakemake keeps of every job, as one tidy table."""

from __future__ import annotations

from pathlib import Path

import pandas

COLUMNS = ("stage", "node", "seconds", "processor_seconds", "peak_mib")


def timings_table(folder: Path) -> pandas.DataFrame:
    """Return one row per job: stage, node, seconds, processor_seconds, peak_mib; longest first.

    Args:
        folder: results/benchmarks; a job's file is {stage}/{node}.tsv. Where jobs ran on other
            machines without a shared folder it lacks theirs.

    Raises:
        ValueError: a file is no benchmark of Snakemake's; the message names it.
    """
    rows = []
    for path in sorted(folder.rglob("*.tsv")):
        stage, _, node = path.relative_to(folder).with_suffix("").as_posix().partition("/")
        try:
            last = pandas.read_csv(path, sep="\t", na_values="-").iloc[-1]
            measured = [float(last[name]) for name in ("s", "cpu_time", "max_rss")]
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{path} is no benchmark file of Snakemake ({error}); delete it") from error
        rows.append([stage, node, *measured])
    frame = pandas.DataFrame(rows, columns=list(COLUMNS))
    return frame.sort_values("seconds", ascending=False, kind="stable", ignore_index=True)

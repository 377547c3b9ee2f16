"""Where the time went, in words and by stage: from the table `timings`."""

from __future__ import annotations

import pandas


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

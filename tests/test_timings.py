"""The benchmark files of a run as a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from aird.timings import COLUMNS, timings_table

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(f"{line}\n" for line in lines))


def test_a_row_per_job_the_longest_first(tmp_path: Path) -> None:
    write(tmp_path / "prompts/harmful.tsv", "0.48\t0:00:00\t-\t-\t-\t-\t-\t-\t0\t-")
    write(tmp_path / "evaluation/tiny/original/plain/quick.tsv", "81.2\t0:01:21\t4041.9\t1\t1\t1\t1\t1\t70.5\t58.4")
    frame = timings_table(tmp_path)
    assert list(frame.columns) == list(COLUMNS)
    assert frame.iloc[0].tolist() == ["evaluation", "tiny/original/plain/quick", 81.2, 58.4, 4041.9]
    assert frame.iloc[1].tolist()[:3] == ["prompts", "harmful", 0.48]
    assert frame.iloc[1][["processor_seconds", "peak_mib"]].isna().all()  # too short to be measured


def test_without_files_the_table_is_empty(tmp_path: Path) -> None:
    frame = timings_table(tmp_path / "missing")
    assert frame.empty
    assert list(frame.columns) == list(COLUMNS)


def test_another_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match=r"x\.tsv is no benchmark file"):
        timings_table(tmp_path)

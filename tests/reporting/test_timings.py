"""The benchmark files of a run as a table."""

from __future__ import annotations

import math
from pathlib import Path

import pandas
import pytest

from aird.reporting.records import Records
from aird.reporting.tables import all_tables, make_table
from aird.reporting.timings import by_stage, duration

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(f"{line}\n" for line in lines))


def timings_table(results: Path) -> pandas.DataFrame:
    return make_table(all_tables()["timings"], Records(results, {}, {}, {}))


def test_a_row_per_job_the_longest_first(tmp_path: Path) -> None:
    write(tmp_path / "benchmarks/prompts/harmful.tsv", "0.48\t0:00:00\t-\t-\t-\t-\t-\t-\t0\t-")
    write(
        tmp_path / "benchmarks/evaluation/tiny/original/plain/quick.tsv",
        "81.2\t0:01:21\t4041.9\t1\t1\t1\t1\t1\t70.5\t58.4",
    )
    frame = timings_table(tmp_path)
    assert list(frame) == "stage node seconds processor_seconds peak_mib".split()
    assert frame.iloc[0].tolist() == ["evaluation", "tiny/original/plain/quick", 81.2, 58.4, 4041.9]
    assert frame.iloc[1].tolist()[:3] == ["prompts", "harmful", 0.48]
    assert frame.iloc[1][["processor_seconds", "peak_mib"]].isna().all()  # too short to be measured


def test_jobs_beside_the_table_are_no_part_of_it(tmp_path: Path) -> None:
    for name in ("tables", "refusal.quick", "cards", "report", "timings"):
        write(tmp_path / f"benchmarks/reporting/{name}.tsv", "0.48\t0:00:00\t1\t1\t1\t1\t1\t1\t0\t0.5")
    assert list(timings_table(tmp_path)["node"]) == ["tables"]


def test_without_files_the_table_is_empty(tmp_path: Path) -> None:
    frame = timings_table(tmp_path / "missing")
    assert frame.empty and len(frame.columns) == 5


def test_another_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/x.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match=r"x\.tsv is no benchmark file"):
        timings_table(tmp_path)


def test_jobs_of_a_stage_are_added_up() -> None:
    rows = [
        ["scores", "m/a", 60.0, 1.0, 100.0],
        ["scores", "m/b", 90.5, 1.0, 300.0],
        ["prompts", "x", 0.2, math.nan, math.nan],
    ]
    totals = by_stage(pandas.DataFrame(rows, columns="stage node seconds processor_seconds peak_mib".split()))
    assert list(totals["stage"]) == ["scores", "prompts"]
    assert totals.iloc[0].to_list() == ["scores", 2, 150.5, 90.5, 300.0]
    assert math.isnan(totals.iloc[1]["peak_mib"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (8.44, "8.4 s"), (59.4, "59 s"), (185, "3:05 min"), (3599.6, "1:00:00 h"), (7810, "2:10:10 h")],
)
def test_durations_are_written_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text

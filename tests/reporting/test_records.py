"""The tables of an unfinished run: what is there of its records, and what is said to be absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import node_records
import pandas
import pytest
from node_records import GRID, ORIGINAL, PATCHED, RESTORATIONS, made, row
from project import run_script

from aird.reporting.grid import record_path
from aird.reporting.markdown import directions_markdown
from aird.reporting.records import absent_keys, describe_absent, read_records
from aird.reporting.tables import kinds_of, make_table, tables_of
from aird.support.files import write_json


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return the folder results/ of a finished run, with the records that tables are made of."""
    folder = tmp_path / "results"
    known = node_records.records()
    known["cosmic"] = {ORIGINAL[:2]: node_records.BY_COSMIC}
    known["scores"] = {(*cell, suite): record for (suite, cell), record in known["scores"].items()}
    for kind, records in known.items():
        for key, record in records.items():
            write_json(record_path(folder, kind, key), record)
    for pair in known["directions"]:
        text = "layer,position,induce,kl,bypass,more\n3,-1,0.5,,-1.0,9\n"
        record_path(folder, "candidates", pair).write_text(text, encoding="utf-8")
    return folder


def read(results: Path, grid: dict[str, Any] = GRID) -> tuple[dict[str, pandas.DataFrame], str]:
    """Return the tables of what is there, and what is said of the rest."""
    tables = tables_of(grid)
    kinds = kinds_of(tables.values())
    records = read_records(results, grid, kinds)
    assert absent_keys(results, grid, kinds) == records.absent
    frames = {name: make_table(table, records) for name, table in tables.items() if not table.whole}
    return frames, describe_absent(records.absent, grid)


def test_a_finished_run_lacks_nothing(results: Path) -> None:
    frames, absent = read(results)
    assert absent == ""
    pandas.testing.assert_frame_equal(frames["summary"], made("summary"))
    assert len(frames["directions"]) == 2 and len(frames["paired"]) == 6 and len(frames["compressions"]) == 2
    assert list(frames["candidates"].columns) == "model compression layer position induce kl bypass".split()
    assert list(frames["candidates"]["compression"]) == ["original", "pruned"]


def test_tables_of_what_is_there_leave_out_or_empty_the_rest(results: Path) -> None:
    (results / "scores/small/original/plain/main.json").unlink()
    (results / "comparisons/small/pruned.json").unlink()
    (results / "directions/small/original/direction.json").unlink()
    (results / "directions/small/pruned/verification.json").unlink()
    (results / "models/small/pruned/manifest.json").unlink()
    frames, absent = read(results)
    assert absent == (
        "Not there yet: 1 of 2 checkpoints (pruned), 1 of 2 directions (original), 1 of 2 verified directions (pruned), "
        "1 of 1 compared directions (pruned), 1 of 3 evaluations (original/plain)."
    )
    summary = frames["summary"]
    assert list(summary["patch"]) == ["plain", "repair"]
    # A checkpoint that was not compared is not said to be like the original.
    assert summary[["cosine_same_site", "cosine_own_source", "norm_ratio", "sparsity"]].isna().all(axis=None)
    assert list(summary["layer"]) == [16, 16]
    # Against the original nothing can be said; against its plain self the patched one is.
    assert set(frames["paired"]["against"]) == {"plain"} and len(frames["paired"]) == 2
    assert list(frames["directions"]["compression"]) == ["pruned"]
    (line,) = directions_markdown(frames["directions"]).splitlines()[2:]
    assert [cell.strip() for cell in line.split("|")] == ["", "pruned", "(16, -2)", "relaxed_kl", "120", *[""] * 5]


def test_nothing_at_all_makes_empty_tables(tmp_path: Path) -> None:
    frames, absent = read(tmp_path / "results")
    assert all(frame.empty and len(frame.columns) for frame in frames.values())
    assert "3 of 3 evaluations (original/plain, pruned/plain, pruned/repair)" in absent


def test_absent_records_name_model_and_suite_where_there_are_several_and_no_more_than_three() -> None:
    cells = [(model, "original", patch) for model in ("a", "b") for patch in ("plain", "x")]
    pairs = [("a", "original"), ("b", "original")]
    grid = {"cells": cells, "pairs": pairs, "cosmic": [], "patched": [], "suites": ["s", "t"], "same_weights": []}
    assert describe_absent({"scores": [(*cell, "s") for cell in cells]}, grid) == (
        "Not there yet: 4 of 8 evaluations (a/original/plain/s, a/original/x/s, b/original/plain/s, ...)."
    )


def test_directions_are_restored_in_tables_where_that_was_asked(results: Path) -> None:
    grid = {**GRID, "patched": ["repair"]}
    assert "restored_directions" not in read(results)[0]
    frames, absent = read(results, grid)
    assert "1 of 1 examined patched checkpoints (pruned/repair), 1 of 1 compared" in absent
    assert frames["restored_directions"].empty
    write_json(results / "restorations/small/pruned/repair/comparison.json", RESTORATIONS[PATCHED])
    # All verifications are still to come.
    for path in results.glob("directions/small/*/verification.json"):
        path.unlink()
    frame = read(results, grid)[0]["restored_directions"]
    assert list(frame["patch"]) == ["plain", "plain", "repair"]
    assert pandas.isna(row(frame, patch="repair")["refusal_harmful"])


def make_tables(folder: Path) -> str:
    """Run what `make tables` runs, in a folder."""
    return run_script("print_tables", folder, results="results", grid="grid.json")


@pytest.mark.thorough
def test_make_tables_at_any_time(results: Path) -> None:
    folder, written = results.parent, results / "tables"
    assert "No run has begun" in make_tables(folder) and not written.exists()
    write_json(folder / "grid.json", GRID)
    score = results / "scores/small/pruned/repair/main.json"
    kept = score.read_bytes()

    score.unlink()
    text = make_tables(folder)
    assert "| pruned        | plain   |" in text and "| pruned        | repair  |" not in text
    assert "Not there yet: 1 of 3 evaluations (pruned/repair)." in text and "claims.csv" in text
    assert list(pandas.read_csv(written / "summary.csv")["patch"]) == ["plain", "plain"]
    assert not (written / "claims.csv").exists() and not list(written.glob(".*"))

    # As a finished run leaves them: nothing is written, and the verdicts stay.
    score.write_bytes(kept)
    make_tables(folder)
    (written / "claims.csv").write_text("the verdicts", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in written.iterdir()}
    text = make_tables(folder)
    assert "| pruned        | repair  |" in text and "Not there yet" not in text and "claims.csv" not in text
    assert {path: path.stat().st_mtime_ns for path in written.iterdir()} == before

    # A record that is being made again takes the verdicts along.
    score.unlink()
    make_tables(folder)
    assert not (written / "claims.csv").exists()

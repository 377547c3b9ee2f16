"""The figures show the numbers of the tables, whatever is missing, and give the same bytes each time."""

from __future__ import annotations

import math
import re
import runpy
import sys
import xml.etree.ElementTree as ElementTree
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib
import numpy
import pandas
import pytest
from frames import (
    LARGE,
    POSITIONS,
    SMALL,
    Grid,
    candidate_frame,
    compensation_frame,
    direction_frame,
    restored_frame,
    site_frame,
    summary_frame,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aird.reporting.figures import FIGURES, module_of
from aird.reporting.figures.frontier import frontier_panel
from aird.reporting.figures.style import write_svg

PROJECT = Path(__file__).parents[2]


def figure_of(kind: str, *frames: pandas.DataFrame, patches: Any = None) -> Figure:
    """Return a figure of the registry, from the frames that it shows."""
    more = [patches or {}] if FIGURES[kind].with_patches else []
    figure: Figure = import_module(module_of(kind)).draw(*frames, *more)
    return figure


def draw_suite(summary: pandas.DataFrame) -> dict[str, Figure]:
    """Return the figures of a suite."""
    return {kind: figure_of(kind, summary) for kind, shown in FIGURES.items() if shown.of_suite}


def draw_all(grid: Grid, summary: pandas.DataFrame) -> dict[str, Figure]:
    """Return every figure of a grid."""
    frames = {"candidates": candidate_frame(grid), "sites": site_frame(grid), "directions": direction_frame(grid)}
    frames |= {"summary": summary, "restored_directions": restored_frame(grid)}
    frames["compensation"] = compensation_frame(grid)
    return {kind: figure_of(kind, *(frames[table] for table in shown.tables)) for kind, shown in FIGURES.items()}


def drawn_points(axes: Axes) -> dict[str, tuple[numpy.ndarray, numpy.ndarray, list[Any]]]:
    """Return per label of the error-bar containers the x and y of its points and its bars."""
    return {
        str(container.get_label()): (
            numpy.asarray(container[0].get_xdata(), dtype=float),
            numpy.asarray(container[0].get_ydata(), dtype=float),
            [numpy.array(bars.get_segments()) for bars in container[2]],
        )
        for container in axes.containers
    }


def without(frame: pandas.DataFrame, compression: str, patch: str = "plain") -> pandas.DataFrame:
    """Return a summary without some checkpoint."""
    return frame[(frame["compression"] != compression) | (frame["patch"] != patch)]


def unmeasured(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return a summary of a suite without perplexity and tasks."""
    names = [name for name in frame if name.startswith(("perplexity", "utility"))]
    return frame.assign(**dict.fromkeys(names, math.nan))


SVG = "{http://www.w3.org/2000/svg}"
# Summaries with gaps, and per figure how many points each panel still shows of each patch, or the original.
BOTH = {"plain": 1, "aird": 1}
LINE = {"original": 1, "compressed": 1, "with aird": 1}
GAPS: dict[str, tuple[pandas.DataFrame, dict[str, list[dict[str, int]]]]] = {
    "unmeasured": (
        unmeasured(summary_frame(SMALL)),
        {"refusal": [LINE] * 2, "frontier": [{"original": 1, **BOTH}, {}], "utility": [{}, {}]},
    ),
    "no plain": (
        without(summary_frame(SMALL), "w4a16"),
        {
            "refusal": [{"original": 1, "with aird": 1}] * 2,
            "frontier": [{"original": 1, "aird": 1}, {}],
            "utility": [{"plain": 1}, BOTH],
        },
    ),
    "no original": (
        without(summary_frame(SMALL), "original"),
        {"refusal": [{"compressed": 1, "with aird": 1}] * 2, "frontier": [BOTH] * 2, "utility": [BOTH] * 2},
    ),
    "original only": (
        summary_frame((["tiny"], [], [])),
        {
            "refusal": [{"original": 1}] * 2,
            "frontier": [{"original": 1}, {"plain": 1}],
            "utility": [{"plain": 1}] * 2,
        },
    ),
    "nothing": (summary_frame(SMALL).iloc[:0], {"refusal": [], "frontier": [], "utility": []}),
}


def words_in_file(figure: Figure, path: Path) -> set[str]:
    """Write a figure; return its words as they stand in the file, in which every coordinate is a number."""
    write_svg(figure, path)
    root = ElementTree.parse(path).getroot()
    assert root.tag == f"{SVG}svg"
    for element in root.iter():
        for name in ("d", "x", "y", "width", "height", "transform"):
            assert not re.search("nan|inf", element.get(name, "")), (element.tag, name)
    return {element.text or "" for element in root.iter(f"{SVG}text")}


@pytest.mark.parametrize("grid", [(["tiny"], [], []), pytest.param(LARGE, marks=pytest.mark.thorough)])
def test_every_figure_names_what_its_grid_holds(grid: Grid, tmp_path: Path) -> None:
    """The smallest grid, an original alone, and a large one."""
    models, compressions, patches = map(set, grid)
    for name, figure in draw_all(grid, summary_frame(grid)).items():
        words = words_in_file(figure, tmp_path / name)
        if name == "sites" and not compressions:
            assert words == {"no compressed model to compare with its original"}
            continue
        if name == "compensation" and not compressions:
            assert words == {"no checkpoint was compensated"}
            continue
        # These name the model only where there are several.
        wanted = compressions | (set() if name in ("frontier", "refusal") and len(models) == 1 else models)
        if name not in ("sites", "compensation"):
            wanted |= {"original"}
        if name == "refusal":
            wanted |= {"compressed", f"with {grid[2][-1]}"} if patches else set()
        elif name == "compensation":
            wanted |= patches
        elif name not in ("sites", "candidates"):
            wanted |= {"plain"} | patches
        assert wanted <= {part for text in words for part in text.split(", ")}, name


@pytest.mark.parametrize("name", GAPS)
def test_a_summary_with_gaps_shows_the_rest(name: str, tmp_path: Path) -> None:
    """What is missing from a summary keeps nothing else from being drawn, and a panel without a point says so."""
    summary, expected = GAPS[name]
    for figure_name, figure in draw_suite(summary).items():
        panels = [{label: len(x) for label, (x, _, _) in drawn_points(axes).items()} for axes in figure.axes]
        assert panels == expected[figure_name], figure_name
        words = words_in_file(figure, tmp_path / figure_name)
        if not panels:
            assert words == {"no checkpoint was measured"}
        assert ("not measured" in words) == ({} in panels), figure_name


def test_the_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    """A figure drawn and written twice is the same file, and matplotlib's settings stay as they were."""
    before = dict(matplotlib.rcParams)
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        for name, figure in draw_all(SMALL, summary_frame(SMALL)).items():
            write_svg(figure, tmp_path / folder / name)
    assert dict(matplotlib.rcParams) == before
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
        assert b"<dc:date>" not in path.read_bytes()


REPAIRS = {
    "formula": {"method": "scale", "direction": "original", "alpha": 1.0},
    "learnt": {"method": "calibrate", "direction": "original"},
    "control": {"method": "calibrate", "direction": "random"},
}


@pytest.mark.parametrize(
    ("patches", "repair"),
    [([], None), (["control"], None), (["formula", "control"], "formula"), ([*REPAIRS], "learnt")],
)
def test_a_compression_is_a_line_from_the_original_to_its_repair(patches: list[str], repair: str | None) -> None:
    """Fourteen compressions of two models, by the values and bounds of the table; the repair is that of the sentences."""
    names = [f"compression-{index}" for index in range(14)]
    summary = summary_frame((["one", "other"], names, patches))
    stages = {"original": ("original", "plain"), "compressed": (None, "plain")}
    if repair is not None:
        stages[f"with {repair}"] = (None, repair)
    figure = figure_of("refusal", summary, patches=REPAIRS)
    for index, axes in enumerate(figure.axes):
        rate = ("refusal", "over_refusal")[index % 2]
        rows = summary[summary["model"] == ("one", "other")[index // 2]].set_index(["compression", "patch"])
        expected = [rows.loc[of or name, patch] for name in names for of, patch in stages.values()]
        assert [container.get_label() for container in axes.containers] == [*stages] * len(names)
        points = numpy.concatenate([container[0].get_xydata() for container in axes.containers])
        bars = numpy.concatenate([container[2][0].get_segments() for container in axes.containers])
        for ends, end in ((points[:, 0], ""), (bars[:, 0, 0], "_low"), (bars[:, 1, 0], "_high")):
            numpy.testing.assert_allclose(ends, [row[f"{rate}{end}"] for row in expected], atol=1e-12)
        # Each line joins its points from above, and each name stands above its line and below the line before.
        lines = numpy.concatenate([line.get_xydata() for line in axes.lines if line.get_linestyle() == "-"])
        numpy.testing.assert_array_equal(lines, points)
        assert (numpy.diff(points[:, 1]) > 0).all()
        if rate == "refusal":
            heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
            assert list(heights) == names
            tops = points[:: len(stages), 1]
            assert (numpy.array(list(heights.values())) < tops).all()
            assert (numpy.array(list(heights.values()))[1:] > points[len(stages) - 1 :: len(stages), 1][:-1]).all()
    assert figure.get_figwidth() < 4  # inches: a phone


def test_frontier_points_are_the_numbers_of_the_table() -> None:
    """Each panel holds the patches of its compression; the left ones the original as well."""
    summary = summary_frame(LARGE)
    figure = figure_of("frontier", summary)
    pairs = [(model, compression) for model in LARGE[0] for compression in LARGE[1]]
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == [", ".join(pair) for pair in pairs]
    indexed = summary.set_index(["model", "compression", "patch"])
    for index, axes in enumerate(figure.axes):
        model, compression = pairs[index // 2]
        points = drawn_points(axes)
        is_perplexity = bool(index % 2)
        assert list(points) == ["original"] * (not is_perplexity) + ["plain", *LARGE[2]]
        for label, (x, y, (horizontal, vertical)) in points.items():
            cell = (model, "original", "plain") if label == "original" else (model, compression, label)
            row = indexed.loc[cell]
            cost, unit = ("perplexity", indexed.loc[model, compression, "plain"]["perplexity"])
            if not is_perplexity:
                cost, unit = "over_refusal", 1
            assert (x.item(), y.item()) == (row[cost] / unit, row["refusal"])
            numpy.testing.assert_allclose(vertical[0, :, 1], [row["refusal_low"], row["refusal_high"]], atol=1e-12)
            expected = [row[f"{cost}_low"] / unit, row[f"{cost}_high"] / unit]
            numpy.testing.assert_allclose(horizontal[0, :, 0], expected, atol=1e-12)


STRENGTHS = {"strong": 4.0, "weak": 0.5}


@pytest.mark.parametrize(("method", "start"), [("scale", ["plain"]), ("fit", [])])
def test_patches_that_differ_in_strength_alone_are_one_curve(method: str, start: list[str]) -> None:
    """In the order of alpha, whatever that of the table; a fitted patch of strength 0 is not the plain checkpoint."""
    summary = summary_frame((["tiny"], ["w4a16"], ["strong", "weak", "control"]))
    swept = {name: {"method": method, "direction": "original", "alpha": alpha} for name, alpha in STRENGTHS.items()}
    others = {
        "control": {"method": method, "direction": "random", "alpha": 1.0},
        "without-alpha": {"method": "calibrate", "direction": "original"},
    }
    for axes in figure_of("frontier", summary, patches=swept | others).axes:
        points = drawn_points(axes)
        (curve,) = [line for line in axes.lines if line.get_alpha() == 0.55]
        assert list(numpy.asarray(curve.get_ydata())) == [points[name][1].item() for name in (*start, "weak", "strong")]
        assert {"weak, α = 0.5", "control"} <= {text.get_text() for text in axes.texts}
    alone = figure_of("frontier", summary, patches={**swept, **others, "weak": {**swept["weak"], "direction": "own"}})
    assert not any(line.get_alpha() == 0.55 for axes in alone.axes for line in axes.lines)


def test_names_of_points_do_not_overlap() -> None:
    """Five patches of the same refusal: their names stand apart, in the panel's order."""
    summary = summary_frame((["tiny"], ["w4a16"], ["a", "b", "c", "d"]))
    summary.loc[summary["compression"] == "w4a16", "refusal"] = 0.03
    (axes,) = frontier_panel(summary, ("tiny", "w4a16"), "over_refusal", {}).axes
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert len(heights) == 6
    assert numpy.diff(heights).min() > 0.08 and heights[0] >= 0 and heights[-1] <= 1


def test_a_patched_original_has_a_panel() -> None:
    """A patch of the original is not lost because the original is the reference."""
    summary = summary_frame(SMALL)
    patched = summary[summary["patch"] == "aird"].assign(compression="original")
    figure = figure_of("frontier", pandas.concat([summary, patched]))
    assert [list(drawn_points(axes)) for axes in figure.axes[::2]] == [
        ["original", "aird"],
        ["original", "plain", "aird"],
    ]


def test_utility_points_are_ratios_to_plain() -> None:
    """Perplexity is drawn over that of the same compression's plain checkpoint, accuracy as it is."""
    summary = summary_frame(SMALL)
    perplexity, accuracy = map(drawn_points, figure_of("utility", summary).axes)
    plain, patched = (summary[summary["compression"] == "w4a16"].iloc[index] for index in (0, 1))
    x, _, bars = perplexity["aird"]
    assert x.item() == patched["perplexity"] / plain["perplexity"]
    expected = [patched[f"perplexity_{end}"] / plain["perplexity"] for end in ("low", "high")]
    numpy.testing.assert_allclose(bars[0][0, :, 0], expected)
    numpy.testing.assert_array_equal(perplexity["plain"][0], [1, 1])
    x, _, bars = accuracy["aird"]
    assert x.item() == patched["utility"]
    numpy.testing.assert_allclose(bars[0][0, 1, 0] - x.item(), 1.96 * 0.01, rtol=1e-3)
    # A broken patch must not press all others onto one line.
    broken = summary.assign(perplexity_high=summary["perplexity_high"].where(summary["patch"] == "plain", 5000))
    scales = [figure_of("utility", frame).axes[0] for frame in (summary, broken)]
    assert [axes.get_xscale() for axes in scales] == ["linear", "log"] and len(scales[1].get_xticks()) >= 2


def notes(figure: Figure) -> list[str]:
    """Return what stands at the right above heat maps."""
    titles = [axes.get_title(loc="right") for axes in figure.axes if axes.images]
    return [title for title in titles if title]


def test_heat_maps_are_the_scores_of_the_table() -> None:
    """Every cell is the table's score or masked where there is none; the chosen site is marked."""
    candidates, directions = candidate_frame(LARGE), direction_frame(LARGE)
    figure = figure_of("candidates", candidates, directions)
    maps = [axes for axes in figure.axes if axes.images]
    assert len(maps) == 3 * len(directions)
    for index, axes in enumerate(maps):
        pair = directions.iloc[index // 3]
        image = axes.images[0]
        shades: Any = numpy.ma.asarray(image.get_array())
        is_pair = (candidates["model"] == pair["model"]) & (candidates["compression"] == pair["compression"])
        for _, row in candidates[is_pair].iterrows():
            value, drawn = row[str(image.get_label())], shades[row["position"] + POSITIONS, row["layer"]]
            assert drawn is numpy.ma.masked if pandas.isna(value) else drawn == value
        site = next(line for line in axes.lines if line.get_label() == "chosen site")
        assert (site.get_xdata()[0], site.get_ydata()[0]) == (pair["layer"], pair["position"])  # type: ignore[index]
    assert notes(figure) == ["fallback: relaxed_kl"] * len(LARGE[0])
    # What COSMIC chose is no fallback.
    figure = figure_of("candidates", candidate_frame(SMALL), direction_frame(SMALL).assign(rule="cosmic"))
    assert notes(figure) == ["chosen by cosmic"] * 2


def test_a_kl_of_zero_does_not_look_missing() -> None:
    """The logarithmic scale gives 0 its lowest colour; transparent cells are those without a score."""
    figure = figure_of("candidates", candidate_frame(SMALL), direction_frame(SMALL))
    image = next(axes.images[0] for axes in figure.axes if axes.images and axes.images[0].get_label() == "kl")
    values: Any = numpy.ma.asarray(image.get_array())
    assert (values == 0).any()
    opacity = image.to_rgba(values)[..., 3]
    numpy.testing.assert_array_equal(opacity == 0, numpy.ma.getmaskarray(values))


def test_lines_are_the_sites_of_the_table() -> None:
    """The labelled lines are those at the original's position; undefined sites are left out."""
    sites, directions = site_frame(LARGE), direction_frame(LARGE)
    figure = figure_of("sites", sites, directions)
    for index, axes in enumerate(figure.axes):
        name, model = ("cosine", "norm_ratio")[index % 2], LARGE[0][index // 2]
        original = directions[(directions["model"] == model) & (directions["compression"] == "original")].iloc[0]
        lines = {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}
        assert list(lines) == list(LARGE[1])
        for compression, line in lines.items():
            rows = sites[(sites["model"] == model) & (sites["compression"] == compression)]
            rows = rows[rows["position"] == original["position"]]
            drawn = numpy.asarray(line.get_ydata(), dtype=float)
            assert math.isnan(drawn[0])
            numpy.testing.assert_array_equal(drawn[1:], rows[name].to_numpy()[1:])
            numpy.testing.assert_array_equal(line.get_xdata(), rows["layer"])
        dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert [numpy.asarray(line.get_xdata())[0] for line in dotted] == [original["layer"]]
        assert len(axes.patches) == (name == "cosine")  # the null's band
    plain = figure_of("sites", sites, directions.drop(columns="split_half_null_low"))
    assert not any(axes.patches for axes in plain.axes)


def test_script_draws_the_chosen_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script reads the tables, takes the suite by name and writes one file, nothing half."""
    summary = summary_frame(SMALL).replace({"compression": {"w4a16": "007"}})
    pandas.concat([summary, summary.assign(suite="other", n=77)]).to_csv(tmp_path / "summary.csv", index=False)
    output = tmp_path / "figures" / "refusal.svg"
    monkeypatch.syspath_prepend(str(PROJECT / "workflow" / "scripts"))

    def run(figure: str) -> str:
        paths = ["--tables", str(tmp_path / "summary.csv"), "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["make_figures.py", *paths, "--settings", "{}", "--figure", figure])
        runpy.run_module("make_figures", run_name="__main__")
        return output.read_text(encoding="utf-8")

    text = run("refusal.other")
    assert list(output.parent.iterdir()) == [output] and "n = 77" in text and ">007<" in text
    assert "n = 100" in run("refusal.safety")
    with pytest.raises(ValueError, match="the tables have no suite missing; they have: safety, other"):
        run("refusal.missing")
    with pytest.raises(ValueError, match="one suite, but the rows are of safety, other"):
        figure_of("refusal", pandas.read_csv(tmp_path / "summary.csv"))
    with pytest.raises(ValueError, match="there is no figure pie; known: refusal.SUITE, frontier.SUITE"):
        run("pie")


def test_shares_of_the_error_are_those_of_the_table() -> None:
    """One row of panels per compensated checkpoint, one line per kind of matrix over its blocks."""
    frame = compensation_frame(LARGE)
    figure = figure_of("compensation", frame)
    cells = list(frame.groupby(["model", "compression", "patch"], sort=False))
    assert len(figure.axes) == 2 * len(cells)
    for index, axes in enumerate(figure.axes):
        (cell, rows), name = cells[index // 2], ("first_share", "first_8_share")[index % 2]
        assert axes.get_title("left") == ("" if index % 2 else ", ".join(cell))
        lines = {str(line.get_label()): line for line in axes.lines}
        assert list(lines) == ["o_proj", "down_proj"]
        for kind, line in lines.items():
            assert list(numpy.asarray(line.get_xdata())) == [0, 1]
            assert list(numpy.asarray(line.get_ydata())) == list(rows[rows["module"].str.endswith(kind)][name])


def test_restored_directions_are_those_of_the_table() -> None:
    frame = restored_frame(LARGE)
    figure = figure_of("restored", frame)
    assert len(figure.axes) == 3 * len(LARGE[0])
    names = ("corrected_cosine", "norm_ratio", "refusal_harmful_ablated")
    for index, axes in enumerate(figure.axes):
        rows = frame[frame["model"] == LARGE[0][index // 3]]
        name = names[index % 3]
        for patch, (x, _, _) in drawn_points(axes).items():
            expected = rows[(rows["patch"] == patch) & rows[name].notna()][name]
            assert list(x) == list(expected)
    # Without an ablation by the original's direction a plain checkpoint has no point, but the original has.
    assert [len(drawn_points(axes)["plain"][0]) for axes in figure.axes[:3]] == [5, 5, 1]
    # A partly finished run has no comparison yet.
    assert not figure_of("restored", frame.iloc[:0]).axes

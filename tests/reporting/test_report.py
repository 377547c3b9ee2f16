"""The report: what stands in it, and how it behaves in a real browser."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas
import pytest
from browser import NoBrowser, running_browser
from frames import Grid, write_tables

from aird.commands.main import main
from aird.reporting.figures.drawing import draw
from aird.reporting.figures.style import write_svg
from aird.reporting.report.captions import Captions
from aird.reporting.report.data_tables import MOST_ROWS, html_table, short_number
from aird.reporting.report.page import Sources, write_report
from aird.reporting.report.pictures import figure_svg
from aird.support.files import write_json

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = sorted((ROOT / "workflow" / "report").glob("*.rst"))
GRID: Grid = (["tiny"], ["magnitude-30", "w4a16"], ["aird", "aird-alpha-4", "random-control"])
PATCHES = {
    "aird": {"method": "scale", "direction": "original", "alpha": 1.0},
    "aird-alpha-4": {"method": "scale", "direction": "original", "alpha": 4.0},
    "random-control": {"method": "scale", "direction": "random", "alpha": 1.0},
}
CONFIGURATION = {
    "seed": 42,
    "models": {"tiny": {"source": {"hub": "organisation/tiny", "revision": "5" * 40, "path": None}}},
    "corpora": {"text": {"source": {"path": "text.txt", "sha256": None}}},
    "prompt_sets": {
        "attack": {"source": {"wheel": "prompts==1.0", "file": "attack.txt", "sha256": "ab" * 32}},
        "both": {"source": None, "combine": ["attack", "more"]},
    },
    "directions": {"train": 16},
    "compressions": {"w4a16": {"recipe": "round_to_nearest", "weight_bits": 4}},
    "patches": PATCHES,
    "suites": {"safety": {"tasks": ["counting"]}},
}
ARITHMETIC = {
    "compute_dtype": "measured",
    "processor": "A processor of 2026",
    "gigaflops": {"bfloat16": 70.1, "float32": 126.4},
    "computes_in": {"bfloat16": "float32", "float32": "float32"},
}
FIGURES = ("refusal.safety", "frontier.safety", "utility.safety", "candidates", "sites", "restored")
TIMINGS = "stage,node,seconds,processor_seconds,peak_mib\n"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Return a finished run of made-up numbers."""
    folder = tmp_path_factory.mktemp("results")
    tables = write_tables(folder / "tables", GRID)
    figures = []
    for name in FIGURES:
        figures.append(folder / f"{name}.svg")
        write_svg(draw(name, tables, PATCHES), figures[-1])
    manifest = folder / "models/tiny/w4a16/manifest.json"
    write_json(manifest, {"files": {"model.safetensors": "cd" * 32, "config.json": "ef" * 32}})
    write_json(folder / "vllm.json", {"versions": {"vllm": "1.2.3"}})
    write_json(folder / "arithmetic.json", ARITHMETIC)
    lock = folder / "core.lock.txt"
    lock.write_text("torch==1.0\n", encoding="utf-8")
    timings = folder / "tables" / "timings.csv"
    timings.write_text(f"{TIMINGS}scores,tiny/w4a16,90.0,80.0,512.0\nprompts,attack,0.2,,\n", encoding="utf-8")
    return Sources(
        tables=tables,
        timings=timings,
        figures=figures,
        captions=CAPTIONS,
        manifests=[manifest],
        records=[folder / "vllm.json"],
        arithmetic=folder / "arithmetic.json",
        locks=[lock],
        configuration=CONFIGURATION,
        command="snakemake --cores all",
    )


@pytest.fixture(scope="module")
def report(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report") / "report.html"
    write_report(output, sources)
    return output


@pytest.fixture(scope="module")
def text(report: Path) -> str:
    return report.read_text(encoding="utf-8")


def written(folder: Path, sources: Sources, **others: Any) -> str:
    """Return the text of a report from other sources."""
    write_report(folder / "report.html", replace(sources, **others))
    return (folder / "report.html").read_text(encoding="utf-8")


def test_it_says_where_the_numbers_come_from(text: str) -> None:
    expected = [
        "hub organisation/tiny, revision " + "5" * 40,
        "wheel prompts==1.0",
        "ab" * 32,
        "attack and more, joined",
    ]
    expected += ["cd" * 32, "1.2.3", "core.lock.txt", "snakemake --cores all", "1:30 min", "round_to_nearest"]
    expected += ["A processor of 2026", "bfloat16 70, float32 126", "bfloat16 in float32"]
    assert [part for part in expected if part not in text] == []


def test_it_opens_on_what_was_lost_and_on_what_kind_of_loss_it_is(text: str) -> None:
    opening = re.findall(r'<p class="opening">(.*?)</p>', text, re.DOTALL)
    plain = [html.unescape(re.sub(r"<[^>]+>", "", sentence)) for sentence in opening]
    assert len(plain) == 5
    assert plain[0].startswith("The original refuses 0% (0 to 8%) of 100 harmful prompts")
    # Of one compression the settings are known, of the other only the name.
    assert plain[1].startswith("With magnitude-30 the model refuses")
    assert plain[2].startswith(
        "Magnitude-30: it refuses less of everything. Against the original d' changes by -0.50 (-0.55"
    )
    assert plain[3].startswith("With 4-bit rounding (w4a16) the model refuses")
    # Never the control, which refuses most.
    assert "with aird-alpha-4 it refuses 78% (68 to 86%, not significant, p = 0.12)" in plain[3]
    assert '<small class="uncertainty">(68 to 86%, not significant, p = 0.12)</small>' in opening[3]
    assert '<small class="uncertainty">(-0.55 to -0.45)</small>' in opening[4]
    assert text.index(opening[-1]) < text.index('<article class="claim">')
    # The picture of the finding comes first.
    finding = text.index('aria-label="Figure Refusal, suite safety"')
    assert text.index('id="finding"') < finding < text.index(opening[0])


def test_degenerate_text_stands_at_a_glance(sources: Sources, text: str) -> None:
    summary = pandas.read_csv(next(path for path in sources.tables if path.stem == "summary"))
    table = text.partition("At a glance")[2].partition("</table>")[0]
    headings = [heading.partition(">")[2].partition("<")[0] for heading in table.split("<th ")]
    place = headings.index("degenerate, %") - 2  # what stands before the first heading, and the heading of rows
    cells = [row.split("<td")[1:] for row in re.findall(r'<tr><th scope="row">.*?</tr>', table, re.DOTALL)]
    # The refusal's heading stands over two columns.
    shares = [re.findall(r">([\d.]+)<", row[place + 1]) for row in cells]
    assert shares == [[f"{100 * share:.1f}"] for share in summary["degenerate"]]
    assert {len(row) + 1 for row in cells} == {8} and 'colspan="8"' in table


def test_sensitivity_and_flips_stand_beside_the_rates(text: str) -> None:
    table = text.partition("A lower threshold, or lost sensitivity?")[2].partition("</table>")[0]
    rows = [
        [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)]
        for row in table.partition("<tbody>")[2].split("<tr>")[1:]
    ]
    # The original has nothing to be compared with.
    assert rows[0] == ["original", "0.0, 0.0", "3.00 (2.95 to 3.05)", "0.90 (0.85 to 0.95)", "", ""]
    # Its engine told no log-probabilities.
    assert rows[1][:2] == ["magnitude-30", rows[1][1]] and rows[1][3] == "25 (20 to 30)"
    assert {row[2].partition(") ")[2] for row in rows[1:]} == {"75 (70 to 80)"}
    assert {tuple(row[4:]) for row in rows[1:]} == {("1, 6 90 (85 to 95)",) * 2}


def test_it_says_what_an_undecided_claim_needs(sources: Sources, text: str) -> None:
    claims = pandas.read_csv(next(path for path in sources.tables if path.stem == "claims"))
    undecided = claims[(claims.compression == "all") & (claims.verdict == "undecided")]
    needed = [
        f"About {count} {'compressions' if part == 'further' else 'prompts'} would decide it."
        for count, part in zip(undecided.needed.astype(int), undecided.part, strict=True)
    ]
    assert needed and re.findall(r'<p class="needed">(.*?)</p>', html.unescape(text)) == needed


def test_sites_without_a_second_opinion_and_without_resamples(sources: Sources, tmp_path: Path) -> None:
    """COSMIC need not be asked about every checkpoint, and its own choice is not resampled."""
    paths = write_tables(tmp_path / "tables", GRID)
    path = next(path for path in paths if path.stem == "directions")
    directions = pandas.read_csv(path).astype({"cosmic_agrees": object})
    compressed = directions["compression"] != "original"
    cosmic = ["cosmic_layer", "cosmic_position", "cosmic_agrees"]
    directions.loc[compressed, [*cosmic, "resampled_same_site"]] = math.nan
    directions.loc[~compressed, cosmic] = [7, -2, False]
    directions.to_csv(path, index=False)
    text = written(tmp_path, sources, tables=paths)
    assert re.findall(r"COSMIC: ([^<]+)", text) == ["7, -2"]
    assert re.findall(r"COSMIC (chooses \([^.]+|agrees)", text) == ["chooses (7, -2)"]
    assert re.findall(r"in ([^ ]+)% of resamples", text) == ["75.0"] and "nan%" not in text


def test_directions_stand_with_their_corrected_cosine(text: str) -> None:
    section = text.partition('<section id="directions">')[2].partition("</table>")[0]
    assert section.count("0.85 (0.75 to 0.95)") == 2 and "null" not in section and "0.80" not in section


def test_it_shows_whether_a_direction_came_back(sources: Sources, text: str, tmp_path: Path) -> None:
    heading = "Does the original's direction come back?"
    section = html.unescape(text).partition(heading)[2].partition("</table>")[0]
    cells = [
        re.sub(r"<[^>]+>", " ", row).split()
        for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", section, re.DOTALL)
    ]
    assert cells[0] == "original plain 1.00 1.00 3.00 90.0 → 25.0".split()
    assert cells[1] == "magnitude-30 plain 0.51 0.51 3.00 90.0".split()
    assert cells[2] == "magnitude-30 aird 0.52 +0.12 (-0.25 to +0.50) 0.52 3.00 90.0 → 25.0".split()
    # Where nobody asks, there is no such section.
    others = [path for path in sources.tables if path.stem != "restored_directions"]
    assert heading not in html.unescape(written(tmp_path, sources, tables=others))


def test_the_page_is_the_same_each_time_and_leads_to_itself_alone(sources: Sources, text: str, tmp_path: Path) -> None:
    assert written(tmp_path, sources) == text
    loaded = re.findall(r'(?:\bsrc|<link[^>]*href|xlink:href|url\()[="(\']+([^"\')]+)', text)
    assert loaded and all(address.startswith(("#", "data:")) for address in loaded)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    referred = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert {first or second for first, second in referred} <= set(ids)


def test_words_of_tables_are_text_and_not_markup(sources: Sources, tmp_path: Path) -> None:
    paths = write_tables(tmp_path / "tables", (["tiny"], ["<script>alert(1)</script>"], []))
    text = written(tmp_path, sources, tables=paths, figures=[])
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_it_says_whose_time_it_counts(sources: Sources, text: str, tmp_path: Path) -> None:
    """A benchmark file stays when its job leaves the configuration."""
    assert "1:30 min of computing in this results folder" in text
    assert "other configurations that ran there, and what was since taken out of this one, count too" in text
    (tmp_path / "timings.csv").write_text(TIMINGS, encoding="utf-8")
    assert "There are no benchmark files here" in written(tmp_path, sources, timings=tmp_path / "timings.csv")


def test_every_caption_can_be_shown_and_a_mistake_in_one_is_an_error(tmp_path: Path) -> None:
    from docutils.utils import SystemMessage

    captions = Captions(CAPTIONS)
    for name in FIGURES:
        assert "<strong>Reading.</strong>" in captions("figure", figure=name)
    assert "difference" in captions.table("paired")
    assert "tidy table" in captions.table("rates")
    (tmp_path / "broken.rst").write_text("A `broken reference_ and *emphasis.\n", encoding="utf-8")
    with pytest.raises(SystemMessage):
        Captions([tmp_path / "broken.rst"])("broken")


def test_long_tables_are_cut_and_say_so() -> None:
    table = html_table("many", pandas.DataFrame({"value": range(MOST_ROWS + 5)}))
    assert len(table.rows) == MOST_ROWS and table.total == MOST_ROWS + 5


def test_numbers_are_short() -> None:
    numbers = [0.0, 3.0, 0.12345, 12.3456, 123456.7, 1e-9, math.inf]
    assert [short_number(value) for value in numbers] == "0 3 0.1235 12.35 123457 1.00e-09 inf".split()


@pytest.mark.parametrize("prefix", ["one", "7b", "128-tokens"])
def test_pictures_have_the_colours_of_the_page_and_ids_of_their_own(sources: Sources, prefix: str) -> None:
    """A prefix may begin with a digit."""
    picture = figure_svg(draw("utility.safety", sources.tables, PATCHES), prefix, "a label")
    assert "var(--series-1)" in picture and "var(--ink)" in picture and "#0072b2" not in picture.lower()
    named = set(re.findall(r'\bid="([^"]+)"', picture))
    assert named == {one or other for one, other in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', picture)}
    assert named and all(name.startswith(f"{prefix}-") for name in named)


# In the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        with running_browser() as running:
            yield running
    except NoBrowser as reason:
        pytest.skip(str(reason))


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Callable[..., Any]]:
    """Return a function that opens the report; at the end it must have asked for nothing and complained of nothing."""
    contexts, complaints = [], []

    def opened(width: int = 1100, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 844}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: note_request(request.url))
        page.goto(report.as_uri())
        return page

    def note_request(url: str) -> None:
        if url != report.as_uri() and not url.startswith("data:"):
            complaints.append(url)

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def open_all(page: Any) -> None:
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")


def column(page: Any, table: str, index: int) -> list[str]:
    cells = f"#table-{table} tbody tr:not([hidden]) td:nth-child({index + 1})"
    return list(page.eval_on_selector_all(cells, "all => all.map(cell => cell.dataset.key ?? cell.textContent)"))


def test_pictures_are_drawn(open_page: Callable[..., Any]) -> None:
    page = open_page()
    boxes = page.eval_on_selector_all("figure svg", "all => all.map(one => [one.getBBox().width, one.clientHeight])")
    assert len(boxes) == 4 + 5
    assert all(width > 100 and height > 100 for width, height in boxes)
    # Heat maps are pictures within pictures.
    loaded = page.evaluate(
        """() => Promise.all([...document.querySelectorAll("svg image")].map((one) => new Promise((resolve) => {
            const image = new Image();
            image.onload = () => resolve(image.naturalWidth);
            image.onerror = () => resolve(0);
            image.src = one.href.baseVal;
        })))"""
    )
    assert len(loaded) >= 9 and all(loaded)


def test_tables_sort_by_a_click_and_by_a_key(open_page: Callable[..., Any]) -> None:
    page = open_page()
    open_all(page)
    heading = page.locator("#table-summary th", has_text=re.compile("^refusal$"))
    index = heading.evaluate("one => one.cellIndex")
    before = [float(value) for value in column(page, "summary", index)]
    page.locator("#table-summary th button", has_text=re.compile("^perplexity$")).click()
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(value) for value in column(page, "summary", index)] == sorted(before)
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(value) for value in column(page, "summary", index)] == sorted(before, reverse=True)
    assert page.locator("#table-summary [aria-sort]").count() == 1


def test_empty_cells_come_last_in_both_orders(open_page: Callable[..., Any]) -> None:
    page = open_page()
    open_all(page)
    heading = page.locator("#table-candidates th", has_text=re.compile("^kl$"))
    for _ in range(2):
        heading.locator("button").click()
        values = column(page, "candidates", heading.evaluate("one => one.cellIndex"))
        empty = [value == "" for value in values]
        assert any(empty) and empty == sorted(empty)


def test_tables_are_filtered_by_words(open_page: Callable[..., Any]) -> None:
    page = open_page()
    open_all(page)
    page.locator("[data-filter=table-summary]").fill("W4A16 random")
    assert set(column(page, "summary", 2)) == {"w4a16"} and set(column(page, "summary", 3)) == {"random-control"}
    total = page.locator("#table-summary tbody tr").count()
    assert page.locator("[data-count=table-summary]").text_content() == f"1 of {total} rows"
    page.locator("[data-filter=table-summary]").fill("")
    assert len(column(page, "summary", 2)) == total


def test_every_control_is_reached_by_the_tab_key(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "finding"
    page = open_page()
    open_all(page)
    wanted = page.eval_on_selector_all("a, button, input, summary", "all => all.length")
    page.evaluate("window.reached = new Set(); window.hidden = 0")
    for _ in range(wanted + 60):
        page.keyboard.press("Tab")
        page.evaluate(
            """() => {
                const one = document.activeElement;
                if (one === document.body) return;
                window.reached.add(one);
                if (getComputedStyle(one).outlineStyle === "none") window.hidden += 1;
            }"""
        )
    missed = """() => [...document.querySelectorAll("a, button, input, summary")]
        .filter((one) => !window.reached.has(one)).map((one) => one.outerHTML)"""
    assert page.evaluate(missed) == []
    assert page.evaluate("window.hidden") == 0


def test_the_picture_of_the_finding_fits_a_phone(open_page: Callable[..., Any]) -> None:
    """Without scrolling, its letters at least 11 pixels high, and on the first screen."""
    page = open_page(380)
    picture = page.locator("#finding figure .scroll").first
    assert picture.evaluate("one => one.scrollWidth <= one.clientWidth")
    drawn, height = picture.locator("svg").evaluate("one => [one.getBoundingClientRect().width, one.getBBox().width]")
    assert 9 * drawn / height >= 11  # letters of 9 pt
    box = picture.bounding_box()
    assert box["y"] + box["height"] < 844


@pytest.mark.parametrize("width", [320, 390, 768, 1440])
def test_the_page_is_never_wider_than_the_screen(open_page: Callable[..., Any], width: int) -> None:
    page = open_page(width)
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("attacked", [False, True])
def test_no_table_is_cut_on_a_wide_screen(browser: Any, sources: Sources, tmp_path: Path, attacked: bool) -> None:
    """With eight patches of long names; the tables of all columns scroll in boxes of their own."""
    patches = [f"patch-of-a-long-name-{index}" for index in range(8)]
    tables = write_tables(tmp_path / "tables", (["tiny"], ["gptq-w4a16-group-128"], patches), attacked=attacked)
    written(tmp_path, sources, tables=tables)
    page = browser.new_page(viewport={"width": 1200, "height": 844})
    page.goto((tmp_path / "report.html").as_uri())
    cut = """all => all.filter(one => !one.closest("details") && one.scrollWidth > one.clientWidth)
        .map(one => one.getAttribute("aria-label"))"""
    assert page.locator("table.glance").count() == 4 + attacked
    assert page.eval_on_selector_all(".scroll", cut) == []
    page.close()


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(open_page: Callable[..., Any], scheme: str) -> None:
    """WCAG 2.1 AA: a contrast of 4.5."""
    page = open_page(color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) < 0.05) == (scheme == "dark")
    for selector in ("h1", ".lead", ".note", "nav a", "td", "thead th", "dt", "dd", "summary", "svg text", "footer p"):
        name = "fill" if selector == "svg text" else "color"
        colour = page.locator(selector).first.evaluate(f"one => getComputedStyle(one).{name}")
        light, dark = sorted([luminance(colour), luminance(ground)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (selector, colour, ground)


def test_it_prints_on_paper(open_page: Callable[..., Any]) -> None:
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) == 1
    assert not page.locator("nav").is_visible() and not page.locator("#tables").is_visible()
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 14


def test_the_dark_page_is_dark_and_not_empty(open_page: Callable[..., Any]) -> None:
    from PIL import Image

    picture = Image.open(BytesIO(open_page(390, color_scheme="dark").screenshot(full_page=True))).convert("L")
    shades = picture.histogram()
    assert sum(shades[:64]) > 0.7 * picture.width * picture.height
    assert sum(shades[192:]) > 0.005 * picture.width * picture.height


def test_attacks_stand_before_the_frontier_where_there_are_some(text: str, sources: Sources, tmp_path: Path) -> None:
    assert 'id="attacks"' not in text
    attacked = written(tmp_path, sources, tables=write_tables(tmp_path / "tables", GRID, attacked=True))
    assert attacked.index('id="finding"') < attacked.index('id="attacks"') < attacked.index('id="frontier"')
    section = attacked[attacked.index('id="attacks"') : attacked.index('id="frontier"')]
    assert (
        "Under 2 attacks the original gives in to 40% of the attempts on a prompt, as a mean over 50 prompts" in section
    )
    # A table per compression: attacks down; the original, then its patches, across.
    for compression in GRID[1]:
        assert f"<h3>{compression}</h3>" in section
    assert re.findall(r'<th scope="row">(\w+)</th>', section) == ["none", "prefill", "again"] * len(GRID[1])
    head = section[section.index("<thead>") : section.index("</thead>")]
    assert re.findall(r">([\w-]+), %", head) == ["original", "plain", *GRID[2]]


def test_the_page_of_a_check_fits_a_phone_and_paper(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / ("a-long-name-" * 12) / "check.html"
    path.parent.mkdir()
    assert main(["check", "--demo", "--report", str(path)]) == 3
    for width, media in ((320, "screen"), (794, "print")):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.emulate_media(media=media)
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        tracks = [each.bounding_box()["width"] for each in page.locator(".track").all()]
        assert len(tracks) == 8 and min(tracks) > 200  # the picture stays wide enough to be read

"""Matplotlib's SVG files as parts of a page: colours follow its light or dark scheme, ids stay apart."""

from __future__ import annotations

import html
import io
import re

from matplotlib.figure import Figure

from aird.reporting.figures.style import BAND, BLACK, COLOURS, REFERENCE, write_svg

# Each colour of a figure to the variable of style.css that takes its place.
VARIABLES = {
    BLACK: "ink",
    "#ffffff": "paper",
    REFERENCE: "muted",
    "#666666": "muted",
    "#dddddd": "line",
    "#f4f4f4": "shade",
    BAND: "band",
    **{colour: f"series-{index + 1}" for index, colour in enumerate(COLOURS)},
}
IDS = re.compile(r' id="([^"]+)"')
REFERENCES = re.compile(r'(href="#|url\(#)([^")]+)')


def inline_svg(text: str, prefix: str, label: str) -> str:
    """Return an SVG file as an element of a page.

    Args:
        text: the file.
        prefix: what its ids begin with, different for each picture of a page.
        label: what a screen reader says.
    """
    start = text.index("<svg")
    body = text[text.index(">", start) + 1 :]
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    if box is None:
        raise ValueError("the picture has no viewBox")
    # A style element in a picture would count for the whole page; style.css says the same of pictures.
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = _with_own_ids(body, prefix)
    for colour, variable in VARIABLES.items():
        body = re.sub(rf"{colour}\b", f"var(--{variable})", body, flags=re.IGNORECASE)
    # Text without a fill of its own is black for every browser.
    opening = f'<svg viewBox="0 0 {box[1]} {box[2]}" style="--width: {float(box[1]):.0f}pt" role="img"'
    return f'{opening} aria-label="{html.escape(label)}" fill="var(--ink)">{body.strip()}'


def _with_own_ids(body: str, prefix: str) -> str:
    """Begin ids with `prefix`, and leave out those that nothing refers to: Matplotlib writes some twice."""
    wanted = {name for _, name in REFERENCES.findall(body)}

    def renamed(match: re.Match[str]) -> str:
        if match[1] not in wanted:
            return ""
        wanted.remove(match[1])
        return f' id="{prefix}-{match[1]}"'

    # A prefix may begin with a digit, which would be read as part of the group's number.
    return REFERENCES.sub(rf"\g<1>{prefix}-\2", IDS.sub(renamed, body))


def figure_svg(figure: Figure, prefix: str, label: str) -> str:
    """Return a figure as an element of a page."""
    stream = io.BytesIO()
    write_svg(figure, stream)
    return inline_svg(stream.getvalue().decode(), prefix, label)

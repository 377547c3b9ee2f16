"""Take the pictures of the report from a finished run: `make screenshots`.

    python docs/screenshots.py              the README's, from `make shipped`
    python docs/screenshots.py frontier     that of docs/results.md, from config/embedded.yaml

Needs a Chromium (AIRD_TEST_BROWSER=1 lets it be installed where that is possible).
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from browser import NoBrowser, running_browser

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "results" / "report.html"
IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 150_000
MARGIN = 16  # pixels
PICTURES: dict[str, dict[str, Any]] = {
    "report": {"width": 700, "height": 1000},
    "frontier": {"width": 1100, "height": 900, "selector": "#frontier"},
}


def main() -> None:
    """Write docs/images/*.png."""
    if not REPORT.is_file():
        raise SystemExit(f"{REPORT} is not there: run the workflow first")
    try:
        with running_browser() as browser:
            for name in sys.argv[1:] or ["report"]:
                _take(browser, name, **PICTURES[name])
    except NoBrowser as reason:
        raise SystemExit(str(reason)) from reason


def _take(browser: Any, name: str, width: int, height: int, selector: str | None = None) -> None:
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.goto(REPORT.as_uri())
    # In a picture of one section the bar that sticks to the window's top would lie over its heading.
    page.add_style_tag(content="nav { position: static !important }")
    shot = page.screenshot(full_page=selector is not None, clip=_around(page, selector))
    context.close()
    path = IMAGES / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    # A page has few colours: a palette makes a third of the bytes of it, and nobody sees a difference.
    picture = Image.open(io.BytesIO(shot)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{path} has {size} bytes, more than {MOST_BYTES}")
    print(f"{path.relative_to(ROOT)}: {picture.width} x {picture.height}, {size / 1000:.0f} kB")


def _around(page: Any, selector: str | None) -> dict[str, float] | None:
    """Return the place of a section on its page with a margin, as its text and pictures begin at its very edge."""
    if selector is None:
        return None
    box = page.locator(selector).bounding_box()
    return {**box, "x": box["x"] - MARGIN, "width": box["width"] + 2 * MARGIN}


if __name__ == "__main__":
    main()

"""Write the model card of every patch, with the numbers of all suites, and these as data beside it."""

from pathlib import Path

from aird.reporting.evaluated_card import evaluated_card, published_numbers
from aird.reporting.grid import record_path
from aird.settings.base import ORIGINAL, PLAIN, Settings
from aird.support.files import atomic_file, read_json, write_json

from arguments import run


class Patched(Settings):
    """The patched cells, as (model, compression, patch), and the suites that they are evaluated by."""

    cells: list[tuple[str, str, str]]
    suites: list[str]


def main(results: Path, settings: Patched, cards: list[Path], numbers: list[Path]) -> None:
    """Run the script."""
    for (model, compression, patch), card, data in zip(settings.cells, cards, numbers, strict=True):
        cells = {
            "original": (model, ORIGINAL, PLAIN),
            "compressed": (model, compression, PLAIN),
            "patched": (model, compression, patch),
        }
        scores = {
            suite: {name: read_json(record_path(results, "scores", (*cell, suite))) for name, cell in cells.items()}
            for suite in settings.suites
        }
        record = read_json(record_path(results, "patches", cells["patched"]))
        write_json(data, published_numbers(record, scores))
        with atomic_file(card) as temporary:
            temporary.write_text(evaluated_card(record, scores), encoding="utf-8")


if __name__ == "__main__":
    run(main)

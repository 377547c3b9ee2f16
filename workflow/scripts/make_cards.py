"""Write the model card of every patch, with the numbers of all suites."""

from aird.models.card_metadata import CARD
from aird.reporting.evaluated_card import evaluated_card
from aird.reporting.grid import record_path
from aird.settings.base import ORIGINAL, PLAIN
from aird.support.files import atomic_file, read_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="results", texts="settings", many="output")
    begin_job(arguments)
    grid, results = arguments.settings, arguments.results
    for (model, compression, patch), output in zip(grid["cells"], arguments.output, strict=True):
        cells = {
            "original": (model, ORIGINAL, PLAIN),
            "compressed": (model, compression, PLAIN),
            "patched": (model, compression, patch),
        }
        scores = {
            suite: {name: read_json(record_path(results, "scores", (*cell, suite))) for name, cell in cells.items()}
            for suite in grid["suites"]
        }
        card = results / "patches" / model / compression / patch / "adapter" / CARD
        with atomic_file(output) as temporary:
            temporary.write_text(evaluated_card(card.read_text(encoding="utf-8"), scores), encoding="utf-8")


if __name__ == "__main__":
    main()

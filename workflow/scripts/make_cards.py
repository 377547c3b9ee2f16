"""Write the model card of every patch, with the numbers of all suites, and these as data beside it."""

from aird.reporting.evaluated_card import evaluated_card, published_numbers
from aird.reporting.grid import record_path
from aird.settings.base import ORIGINAL, PLAIN
from aird.support.files import atomic_file, read_json, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="results", texts="settings", many="cards numbers")
    begin_job(arguments)
    grid, results = arguments.settings, arguments.results
    outputs = zip(grid["cells"], arguments.cards, arguments.numbers, strict=True)
    for (model, compression, patch), card, numbers in outputs:
        cells = {
            "original": (model, ORIGINAL, PLAIN),
            "compressed": (model, compression, PLAIN),
            "patched": (model, compression, patch),
        }
        scores = {
            suite: {name: read_json(record_path(results, "scores", (*cell, suite))) for name, cell in cells.items()}
            for suite in grid["suites"]
        }
        record = read_json(record_path(results, "patches", cells["patched"]))
        write_json(numbers, published_numbers(record, scores))
        with atomic_file(card) as temporary:
            temporary.write_text(evaluated_card(record, scores), encoding="utf-8")


if __name__ == "__main__":
    main()

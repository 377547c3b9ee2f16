"""Write the model card of every patch, with the numbers of all suites."""

from pathlib import Path

from aird.patching.card_metadata import CARD
from aird.reporting.evaluated_card import evaluated_card
from aird.support.files import atomic_file, read_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="results output", texts="settings")
    begin_job(arguments)
    grid, results = arguments.settings, arguments.results
    for model, compression, patch in grid["cells"]:
        cells = {
            "original": (model, grid["original"], grid["plain"]),
            "compressed": (model, compression, grid["plain"]),
            "patched": (model, compression, patch),
        }
        scores = {
            suite: {name: read_json(results / "scores" / Path(*cell) / f"{suite}.json") for name, cell in cells.items()}
            for suite in grid["suites"]
        }
        place = Path(model, compression, patch)
        card = (results / "patches" / place / "adapter" / CARD).read_text(encoding="utf-8")
        with atomic_file(arguments.output / place / CARD) as temporary:
            temporary.write_text(evaluated_card(card, scores), encoding="utf-8")


if __name__ == "__main__":
    main()

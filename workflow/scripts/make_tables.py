"""Collect the records of all nodes into tidy CSV tables."""

from pathlib import Path
from typing import Any

import pandas

from aird import tables
from aird.claims import Evidence, claims_table
from aird.files import atomic_file, read_json

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="results output", texts="settings")
    grid = arguments.settings
    results: Path = arguments.results
    pairs = [tuple(pair) for pair in grid["pairs"]]
    cells = [tuple(cell) for cell in grid["cells"]]
    scores = {
        (suite, cell): read_json(results / "scores" / Path(*cell) / f"{suite}.json")
        for suite in grid["suites"]
        for cell in cells
    }

    def read(pattern: str, keys: list[Any]) -> dict[Any, dict[str, Any]]:
        return {key: read_json(results / pattern.format("/".join(key))) for key in keys}

    directions = read("directions/{}/direction.json", pairs)
    verifications = read("directions/{}/verification.json", pairs)
    cosmic = read("directions/{}/cosmic.json", pairs)
    comparisons = read("comparisons/{}.json", [pair for pair in pairs if pair[1] != grid["original"]])
    manifests = read("models/{}/manifest.json", pairs)
    patches = read("patches/{}/statistics.json", [cell for cell in cells if cell[2] != grid["plain"]])
    candidates = pandas.concat(
        pandas.read_csv(results / "directions" / model / compression / "scores.csv").assign(
            model=model, compression=compression
        )
        for model, compression in pairs
    )
    candidates = candidates["model compression layer position induce kl bypass".split()]
    evidence = Evidence(
        directions,
        verifications,
        comparisons,
        scores,
        frozenset(grid["pruned"]),
        frozenset(grid["controls"]),
        grid["seed"],
    )
    made = {
        "summary": tables.summary(scores, directions, comparisons, manifests),
        "claims": claims_table(evidence),
        "rates": tables.rates_table(scores),
        "tasks": tables.utility_table(scores),
        "paired": tables.paired_table(scores),
        "directions": tables.directions_table(directions, comparisons, verifications, cosmic),
        "projections": tables.projections_table(comparisons),
        "sites": tables.sites_table(comparisons),
        "candidates": candidates,
        "patches": tables.patches_table(patches),
        "compressions": tables.compressions_table(manifests),
    }
    for name, frame in made.items():
        with atomic_file(arguments.output / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False)


if __name__ == "__main__":
    main()

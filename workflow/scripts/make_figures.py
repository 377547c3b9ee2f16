"""Draw one figure from the tables."""

from collections.abc import Callable
from pathlib import Path

import pandas
from matplotlib.figure import Figure

from aird import figures
from aird.files import atomic_file

from arguments import parse

SUITE_FIGURES: dict[str, Callable[..., Figure]] = {
    "refusal": figures.refusal_figure,
    "frontier": figures.frontier_figure,
    "utility": figures.utility_figure,
}
# Each with the table that it shows; where the directions were found is always part of it.
DIRECTION_FIGURES: dict[str, tuple[Callable[..., Figure], str]] = {
    "candidates": (figures.candidates_figure, "candidates"),
    "sites": (figures.sites_figure, "sites"),
}


def read(tables: Path, name: str) -> pandas.DataFrame:
    """Return a table; names are text even where they look like numbers."""
    return pandas.read_csv(tables / f"{name}.csv", dtype=dict.fromkeys(("suite", "model", "compression", "patch"), str))


def draw(name: str, tables: Path, suite: str | None) -> Figure:
    """Return a figure by name; of a suite's figure, that of `suite` or of the first suite.

    Raises:
        ValueError: no such figure or suite; the message lists those that exist.
    """
    if name in DIRECTION_FIGURES:
        function, table = DIRECTION_FIGURES[name]
        return function(read(tables, table), read(tables, "directions"))
    if name not in SUITE_FIGURES:
        raise ValueError(f"there is no figure {name}; known: {', '.join([*SUITE_FIGURES, *DIRECTION_FIGURES])}")
    summary = read(tables, "summary")
    known = list(dict.fromkeys(summary["suite"]))
    if suite is None and known:
        suite = known[0]
    if suite not in known:
        raise ValueError(f"the tables have no suite {suite}; they have: {', '.join(known) or 'none'}")
    return SUITE_FIGURES[name](summary[summary["suite"] == suite])


def main() -> None:
    """Run the script."""
    # A suite's name holds no slash, so it passes unchanged as a path.
    arguments = parse(__doc__, paths="tables output", texts="figure", optional="suite")
    suite = None if arguments.suite is None else str(arguments.suite)
    figure = draw(arguments.figure, arguments.tables, suite)
    with atomic_file(arguments.output) as temporary:
        figures.write_svg(figure, temporary)


if __name__ == "__main__":
    main()

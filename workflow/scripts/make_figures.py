"""Draw one figure from the tables; the module of that figure is imported by its name."""

from pathlib import Path

from aird.reporting.figures.drawing import draw
from aird.reporting.figures.style import write_svg
from aird.support.files import atomic_file

from arguments import run


def main(tables: list[Path], figure: str, settings: dict[str, dict[str, object]], output: Path) -> None:
    """Run the script."""
    with atomic_file(output) as temporary:
        write_svg(draw(figure, tables, settings), temporary)


if __name__ == "__main__":
    run(main)

"""Draw one figure from the tables; the module of that figure is imported by its name."""

from aird.reporting.figures.drawing import draw
from aird.reporting.figures.style import write_svg
from aird.support.files import atomic_file

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="output", texts="figure settings", many="tables")
    begin_job(arguments)
    figure = draw(arguments.figure, arguments.tables, arguments.settings)
    with atomic_file(arguments.output) as temporary:
        write_svg(figure, temporary)


if __name__ == "__main__":
    main()

"""Draw one figure from the tables."""

from aird.reporting.figures import draw, write_svg
from aird.support.files import atomic_file

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="tables output", texts="figure settings")
    begin_job(arguments)
    figure = draw(arguments.figure, arguments.tables, arguments.settings)
    with atomic_file(arguments.output) as temporary:
        write_svg(figure, temporary)


if __name__ == "__main__":
    main()

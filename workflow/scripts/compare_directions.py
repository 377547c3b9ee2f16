"""Compare a checkpoint's refusal direction with the original's."""

from aird.directions.activation_cache import load_cache
from aird.directions.comparison import Side, compare_directions
from aird.directions.direction import load_direction
from aird.support.files import write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="original_cache original_direction original_record cache direction record output",
        texts="seed",
    )
    begin_job(arguments)
    original, compressed = (
        Side(load_cache(cache), load_direction(direction, record))
        for cache, direction, record in (
            (arguments.original_cache, arguments.original_direction, arguments.original_record),
            (arguments.cache, arguments.direction, arguments.record),
        )
    )
    write_json(arguments.output, compare_directions(original, compressed, int(arguments.seed)))


if __name__ == "__main__":
    main()

"""Compare a patched checkpoint, its compressed base and the original at the site of the original's direction."""

from aird.directions.activation_cache import load_cache
from aird.directions.comparison import Side
from aird.directions.direction import load_direction
from aird.directions.restoration import compare_restored
from aird.support.files import write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__, paths="original_cache original_direction original_record compressed patched output", texts="seed"
    )
    begin_job(arguments)
    direction = load_direction(arguments.original_direction, arguments.original_record)
    original = Side(load_cache(arguments.original_cache), direction)
    compressed, patched = load_cache(arguments.compressed), load_cache(arguments.patched)
    write_json(arguments.output, compare_restored(original, compressed, patched, int(arguments.seed)))


if __name__ == "__main__":
    main()

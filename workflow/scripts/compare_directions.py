"""Compare a checkpoint's refusal direction with the original's."""

from pathlib import Path

from aird.directions.activation_cache import load_cache
from aird.directions.comparison import Found, compare
from aird.directions.direction import load_direction
from aird.support.files import write_json

from arguments import begin_job, parse


def read(cache: Path, direction: Path, record: Path) -> Found:
    """Return a checkpoint's activations and its direction."""
    found = load_direction(direction, record)
    return Found(load_cache(cache), found.unit, found.layer, found.position)


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="original_cache original_direction original_record cache direction record output",
        texts="seed",
    )
    begin_job(arguments)
    original = read(arguments.original_cache, arguments.original_direction, arguments.original_record)
    compressed = read(arguments.cache, arguments.direction, arguments.record)
    write_json(arguments.output, compare(original, compressed, int(arguments.seed)))


if __name__ == "__main__":
    main()

"""Compare a checkpoint's refusal direction with the original's."""

from pathlib import Path

from aird.directions.activation_cache import load_cache
from aird.directions.comparison import Side, compare_directions
from aird.directions.direction import load_direction
from aird.support.files import write_json

from arguments import run


def main(
    original_cache: Path,
    original_direction: Path,
    original_record: Path,
    cache: Path,
    direction: Path,
    record: Path,
    seed: int,
    output: Path,
) -> None:
    """Run the script."""
    original = Side(load_cache(original_cache), load_direction(original_direction, original_record))
    compressed = Side(load_cache(cache), load_direction(direction, record))
    write_json(output, compare_directions(original, compressed, seed))


if __name__ == "__main__":
    run(main)

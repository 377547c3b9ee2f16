"""Compare a patched checkpoint, its compressed base and the original at the site of the original's direction."""

from pathlib import Path

from aird.directions.activation_cache import load_cache
from aird.directions.comparison import Side
from aird.directions.direction import load_direction
from aird.directions.restoration import compare_restored
from aird.support.files import write_json

from arguments import run


def main(
    original_cache: Path,
    original_direction: Path,
    original_record: Path,
    compressed: Path,
    patched: Path,
    seed: int,
    output: Path,
) -> None:
    """Run the script."""
    direction = load_direction(original_direction, original_record)
    original = Side(load_cache(original_cache), direction)
    write_json(output, compare_restored(original, load_cache(compressed), load_cache(patched), seed))


if __name__ == "__main__":
    run(main)

"""Choose the refusal direction of a checkpoint among its scored candidates."""

from pathlib import Path

from aird.directions.activation_cache import load_cache
from aird.directions.choice import choose_direction
from aird.directions.direction import save_direction
from aird.directions.score_records import load_scores
from aird.settings.directions import Directions
from aird.support.files import read_json
from aird.support.tensor_files import load_tensors

from arguments import run


def main(
    cache: Path,
    scores: Path,
    prompt_scores: Path,
    cosmic: Path | None,
    settings: Directions,
    seed: int,
    direction: Path,
    record: Path,
) -> None:
    """Run the script."""
    tensors, _ = load_tensors(prompt_scores)
    by_cosmic = None if cosmic is None else read_json(cosmic)
    chosen = choose_direction(load_cache(cache), load_scores(scores), tensors, settings, seed, by_cosmic)
    save_direction(chosen, direction, record)


if __name__ == "__main__":
    run(main)

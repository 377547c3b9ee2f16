"""Choose the refusal direction of a checkpoint among its scored candidates."""

from aird.directions.activation_cache import load_cache
from aird.directions.choice import choose_direction
from aird.directions.direction import save_direction
from aird.directions.score_records import load_scores
from aird.settings.directions import Directions
from aird.support.files import read_json
from aird.support.tensor_files import load_tensors

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__, paths="cache scores prompt_scores direction record", many="cosmic", texts="settings seed"
    )
    begin_job(arguments)
    settings = Directions.model_validate(arguments.settings)
    cache, scores = load_cache(arguments.cache), load_scores(arguments.scores)
    prompt_scores, _ = load_tensors(arguments.prompt_scores)
    cosmic = read_json(arguments.cosmic[0]) if arguments.cosmic else None
    direction = choose_direction(cache, scores, prompt_scores, settings, int(arguments.seed), cosmic)
    save_direction(direction, arguments.direction, arguments.record)


if __name__ == "__main__":
    main()

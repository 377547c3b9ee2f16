"""Choose the refusal direction of a checkpoint by COSMIC: by activations, without refusal tokens."""

from aird.directions.activation_cache import load_cache
from aird.directions.cosmic import find_cosmic_direction
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.prompts.sets import CLASSES
from aird.settings.directions import Directions
from aird.support.files import read_json_lines, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__, paths="arithmetic checkpoint manifest cache harmful harmless output", texts="settings", gpu=True
    )
    begin_job(arguments)
    settings = Directions.model_validate(arguments.settings)
    prompts = {kind: read_json_lines(getattr(arguments, kind)) for kind in CLASSES}
    cache = load_cache(arguments.cache)
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    tokenizer, model = load_tokenizer(arguments.checkpoint), load_model(arguments.checkpoint)
    write_json(arguments.output, find_cosmic_direction(model, tokenizer, cache, prompts, settings))


if __name__ == "__main__":
    main()

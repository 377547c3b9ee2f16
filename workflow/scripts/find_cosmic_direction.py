"""Choose the refusal direction of a checkpoint by COSMIC: by activations, without refusal tokens."""

from aird.directions.activation_cache import CLASSES, kept_prompts_of, load_cache
from aird.directions.cosmic import cosmic_direction
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
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
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    tokenizer, model = load_tokenizer(arguments.checkpoint), load_model(arguments.checkpoint)
    cache = load_cache(arguments.cache)
    records = {kind: read_json_lines(getattr(arguments, kind)) for kind in CLASSES}
    harmful, harmless = kept_prompts_of(cache, "validation", tokenizer, records)
    write_json(arguments.output, cosmic_direction(model, cache, harmful, harmless, settings))


if __name__ == "__main__":
    main()

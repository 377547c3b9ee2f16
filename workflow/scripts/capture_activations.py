"""Run a checkpoint once over the direction prompts and keep its activations."""

from aird.directions.activation_cache import save_cache
from aird.directions.activations import capture_activations
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.prompts.sets import CLASSES
from aird.settings.directions import Directions
from aird.support.files import read_json, read_json_lines

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="arithmetic checkpoint manifest refusal_tokens harmful harmless output",
        texts="settings seed",
        gpu=True,
    )
    begin_job(arguments)
    settings = Directions.model_validate(arguments.settings)
    prompts = {kind: read_json_lines(getattr(arguments, kind)) for kind in CLASSES}
    tokens = read_json(arguments.refusal_tokens)
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    tokenizer, model = load_tokenizer(arguments.checkpoint), load_model(arguments.checkpoint)
    cache = capture_activations(model, tokenizer, prompts, tokens, settings, int(arguments.seed))
    save_cache(cache, arguments.output)


if __name__ == "__main__":
    main()

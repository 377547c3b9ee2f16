"""Run a patched checkpoint over the direction prompts, and verify the original's direction on it (claim C5)."""

from aird.directions.activation_cache import save_cache
from aird.directions.activations import capture_activations
from aird.directions.direction import load_direction
from aird.directions.verification import verify_direction
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.prompts.sets import CLASSES
from aird.settings.directions import Directions
from aird.support.files import check_folder, read_json, read_json_lines, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="arithmetic checkpoint manifest adapter statistics direction record refusal_tokens harmful harmless "
        "cache verification",
        texts="settings seed",
        gpu=True,
    )
    begin_job(arguments)
    settings, seed = Directions.model_validate(arguments.settings), int(arguments.seed)
    prompts = {kind: read_json_lines(getattr(arguments, kind)) for kind in CLASSES}
    tokens = read_json(arguments.refusal_tokens)
    direction = load_direction(arguments.direction, arguments.record)
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    check_folder(arguments.adapter, read_json(arguments.statistics)["files"])
    tokenizer = load_tokenizer(arguments.checkpoint)
    # The model inside PEFT's wrapper: its modules add the adapter themselves.
    model = load_model(arguments.checkpoint, arguments.adapter).get_base_model()
    cache = capture_activations(model, tokenizer, prompts, tokens, settings, seed)
    record = verify_direction(model, tokenizer, direction, prompts, settings, seed)
    save_cache(cache, arguments.cache)
    write_json(arguments.verification, record)


if __name__ == "__main__":
    main()

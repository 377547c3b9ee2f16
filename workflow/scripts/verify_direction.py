"""Ablate and add the chosen direction on held-out prompts (claim C1)."""

from aird.directions.direction import load_direction
from aird.directions.verification import verify_direction
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.prompts.sets import CLASSES
from aird.settings.directions import Directions
from aird.support.files import read_json_lines, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="arithmetic checkpoint manifest direction record harmful harmless output",
        texts="settings seed",
        gpu=True,
    )
    begin_job(arguments)
    settings = Directions.model_validate(arguments.settings)
    prompts = {kind: read_json_lines(getattr(arguments, kind)) for kind in CLASSES}
    direction = load_direction(arguments.direction, arguments.record)
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    tokenizer, model = load_tokenizer(arguments.checkpoint), load_model(arguments.checkpoint)
    record = verify_direction(model, tokenizer, direction, prompts, settings, int(arguments.seed))
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()

"""Find the tokens that the original model's own refusals begin with."""

from aird.directions.refusal_tokens import find_refusal_tokens
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.prompts.sets import CLASSES
from aird.settings.directions import Directions
from aird.support.files import read_json_lines, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__, paths="arithmetic checkpoint manifest harmful harmless output", texts="settings seed", gpu=True
    )
    begin_job(arguments)
    settings = Directions.model_validate(arguments.settings)
    prompts = {kind: read_json_lines(getattr(arguments, kind)) for kind in CLASSES}
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    tokenizer, model = load_tokenizer(arguments.checkpoint), load_model(arguments.checkpoint)
    write_json(arguments.output, find_refusal_tokens(model, tokenizer, prompts, settings, int(arguments.seed)))


if __name__ == "__main__":
    main()

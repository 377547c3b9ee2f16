"""Find the tokens that the original model's own refusals begin with."""

from aird.directions.refusal_tokens import find_refusal_tokens
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.prompts.sets import select
from aird.settings.base import PromptSelection
from aird.support.files import read_json_lines, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__, paths="arithmetic checkpoint manifest harmful harmless output", texts="settings seed", gpu=True
    )
    begin_job(arguments)
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    instructions: dict[str, list[str]] = {}
    for kind in ("harmful", "harmless"):
        selection = PromptSelection.model_validate(arguments.settings[kind])
        records = select(read_json_lines(getattr(arguments, kind)), selection, int(arguments.seed))
        instructions[kind] = [record["instruction"] for record in records]
    tokenizer, model = load_tokenizer(arguments.checkpoint), load_model(arguments.checkpoint)
    found = find_refusal_tokens(
        model, tokenizer, instructions["harmful"], instructions["harmless"], arguments.settings["new_tokens"]
    )
    write_json(arguments.output, found)


if __name__ == "__main__":
    main()

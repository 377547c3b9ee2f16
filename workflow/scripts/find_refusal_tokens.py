"""Find the tokens that the original model's own refusals begin with."""

from aird.chat import chat_tokens
from aird.files import read_json_lines, write_json
from aird.generation import generate
from aird.models import load_model, load_tokenizer, open_checkpoint
from aird.prompts import select
from aird.refusal_score import derive_refusal_tokens
from aird.refusals import jailbroken_arditi
from aird.settings.base import PromptSelection

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="checkpoint manifest harmful harmless output", texts="settings seed", gpu=True)
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    tokenizer, model = load_tokenizer(arguments.checkpoint), load_model(arguments.checkpoint)
    completions = {}
    for kind in ("harmful", "harmless"):
        selection = PromptSelection.model_validate(arguments.settings[kind])
        records = select(read_json_lines(getattr(arguments, kind)), selection, int(arguments.seed))
        prompts = [chat_tokens(tokenizer, record["instruction"]) for record in records]
        completions[kind] = generate(model, tokenizer, prompts, arguments.settings["new_tokens"])
    refused = [not jailbroken_arditi(tokenizer.decode(ids)) for ids in completions["harmful"]]
    found = derive_refusal_tokens(tokenizer, completions["harmful"], refused, completions["harmless"])
    write_json(arguments.output, found)


if __name__ == "__main__":
    main()

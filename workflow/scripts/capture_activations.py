"""Run a checkpoint once over the direction prompts and keep its activations."""

from aird.activation_cache import CLASSES, SPLITS, Group, save_cache
from aird.activations import capture
from aird.chat import chat_tokens, post_instruction_tokens
from aird.files import read_json, read_json_lines
from aird.models import load_model, load_tokenizer, open_checkpoint
from aird.prompts import select
from aird.settings.base import PromptSelection

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__, paths="checkpoint manifest refusal_tokens harmful harmless output", texts="settings seed", gpu=True
    )
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    tokenizer, model = load_tokenizer(arguments.checkpoint), load_model(arguments.checkpoint)
    positions = len(post_instruction_tokens(tokenizer))
    tokens = read_json(arguments.refusal_tokens)["tokens"]
    cache = {}
    for kind in CLASSES:
        records = read_json_lines(getattr(arguments, kind))
        for split in SPLITS:
            selection = PromptSelection(set=kind, split=split, count=arguments.settings[split])
            chosen = select(records, selection, int(arguments.seed))
            prompts = [chat_tokens(tokenizer, record["instruction"]) for record in chosen]
            activations, scores = capture(model, prompts, positions, tokens)
            cache[kind, split] = Group(activations, scores, tuple(record["id"] for record in chosen))
    save_cache(cache, arguments.output)


if __name__ == "__main__":
    main()

"""Run a checkpoint once over the direction prompts and keep its activations."""

from aird.directions.activation_cache import CLASSES, SPLITS, capture_cache, save_cache
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.prompts.sets import select
from aird.settings.base import PromptSelection
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
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    chosen = {}
    for kind in CLASSES:
        records = read_json_lines(getattr(arguments, kind))
        for split in SPLITS:
            selection = PromptSelection(set=kind, split=split, count=arguments.settings[split])
            chosen[kind, split] = select(records, selection, int(arguments.seed))
    tokenizer, model = load_tokenizer(arguments.checkpoint), load_model(arguments.checkpoint)
    tokens = read_json(arguments.refusal_tokens)["tokens"]
    save_cache(capture_cache(model, tokenizer, chosen, tokens), arguments.output)


if __name__ == "__main__":
    main()

"""Compress a model by one recipe, measure what came out, and refuse a recipe that did nothing."""

from pathlib import Path

from aird.compression.compress import compress
from aird.models.loading import TRUST, code_is_trusted, load_tokenizer, open_checkpoint
from aird.plugin import RECIPES
from aird.prompts.chat import chat_tokens
from aird.prompts.corpora import token_sequences
from aird.prompts.sets import select
from aird.support.environments import recorded_python
from aird.support.files import hash_folder, read_json_lines, write_json

from arguments import run


def main(
    original: Path,
    original_manifest: Path,
    calibration: Path | None,
    environment: Path | None,
    settings: dict[str, object],
    checkpoint: Path,
    manifest: Path,
) -> None:
    """Run the script."""
    recipe = RECIPES.parse(settings)
    open_checkpoint(original, original_manifest)
    prompts = None
    if calibration is not None:
        chosen, records, tokenizer = recipe.calibration, read_json_lines(calibration), load_tokenizer(original)
        if chosen.selection is None:
            prompts = token_sequences([record["text"] for record in records], tokenizer, chosen)
        else:
            drawn = select(records, chosen.selection, chosen.seed)
            prompts = [chat_tokens(tokenizer, record["instruction"]) for record in drawn]
    python = None if environment is None else recorded_python(environment)
    measurements = compress(original, checkpoint, recipe, prompts, python)
    files = hash_folder(checkpoint)
    write_json(manifest, {"settings": settings, TRUST: code_is_trusted(), **measurements, "files": files})


if __name__ == "__main__":
    run(main, model=True)

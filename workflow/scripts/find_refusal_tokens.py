"""Find the tokens that the original model's own refusals begin with."""

from pathlib import Path

from aird.directions.refusal_tokens import find_refusal_tokens
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.settings.directions import Directions
from aird.support.files import read_json_lines, write_json

from arguments import run


def main(
    checkpoint: Path, manifest: Path, harmful: Path, harmless: Path, settings: Directions, seed: int, output: Path
) -> None:
    """Run the script."""
    prompts = {"harmful": read_json_lines(harmful), "harmless": read_json_lines(harmless)}
    open_checkpoint(checkpoint, manifest)
    tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint)
    write_json(output, find_refusal_tokens(model, tokenizer, prompts, settings, seed))


if __name__ == "__main__":
    run(main, model=True)

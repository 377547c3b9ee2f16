"""Choose the refusal direction of a checkpoint by COSMIC: by activations, without refusal tokens."""

from pathlib import Path

from aird.directions.activation_cache import load_cache
from aird.directions.cosmic import find_cosmic_direction
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.settings.directions import Directions
from aird.support.files import read_json_lines, write_json

from arguments import run


def main(
    checkpoint: Path, manifest: Path, cache: Path, harmful: Path, harmless: Path, settings: Directions, output: Path
) -> None:
    """Run the script."""
    prompts = {"harmful": read_json_lines(harmful), "harmless": read_json_lines(harmless)}
    open_checkpoint(checkpoint, manifest)
    tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint)
    write_json(output, find_cosmic_direction(model, tokenizer, load_cache(cache), prompts, settings))


if __name__ == "__main__":
    run(main, model=True)

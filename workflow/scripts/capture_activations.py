"""Run a checkpoint once over the direction prompts and keep its activations."""

from pathlib import Path

from aird.directions.activation_cache import save_cache
from aird.directions.activations import capture_activations
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.settings.directions import Directions
from aird.support.files import read_json, read_json_lines

from arguments import run


def main(
    checkpoint: Path,
    manifest: Path,
    refusal_tokens: Path,
    harmful: Path,
    harmless: Path,
    settings: Directions,
    seed: int,
    output: Path,
) -> None:
    """Run the script."""
    prompts = {"harmful": read_json_lines(harmful), "harmless": read_json_lines(harmless)}
    tokens = read_json(refusal_tokens)
    open_checkpoint(checkpoint, manifest)
    tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint)
    cache = capture_activations(model, tokenizer, prompts, tokens, settings, seed)
    save_cache(cache, output)


if __name__ == "__main__":
    run(main, model=True)

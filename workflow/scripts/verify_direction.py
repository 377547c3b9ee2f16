"""Ablate and add the chosen direction on held-out prompts (claim C1)."""

from pathlib import Path

from aird.directions.direction import load_direction
from aird.directions.verification import verify_direction
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.settings.directions import Directions
from aird.support.files import read_json_lines, write_json

from arguments import run


def main(
    checkpoint: Path,
    manifest: Path,
    direction: Path,
    record: Path,
    harmful: Path,
    harmless: Path,
    settings: Directions,
    seed: int,
    output: Path,
) -> None:
    """Run the script."""
    prompts = {"harmful": read_json_lines(harmful), "harmless": read_json_lines(harmless)}
    chosen = load_direction(direction, record)
    open_checkpoint(checkpoint, manifest)
    tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint)
    verified = verify_direction(model, tokenizer, chosen, prompts, settings, seed)
    write_json(output, verified)


if __name__ == "__main__":
    run(main, model=True)

"""Run a patched checkpoint over the direction prompts, and verify the original's direction on it (claim C5)."""

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from aird.directions.activation_cache import save_cache
from aird.directions.activations import capture_activations
from aird.directions.direction import load_direction
from aird.directions.verification import verify_direction
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.settings.directions import Directions
from aird.support.files import check_folder, read_json, read_json_lines, write_json

from arguments import run


def main(
    checkpoint: Path,
    manifest: Path,
    adapter: Path,
    statistics: Path,
    direction: Path,
    record: Path,
    refusal_tokens: Path,
    harmful: Path,
    harmless: Path,
    settings: Directions,
    seed: int,
    cache: Path,
    verification: Path,
) -> None:
    """Run the script."""
    prompts = {"harmful": read_json_lines(harmful), "harmless": read_json_lines(harmless)}
    tokens = read_json(refusal_tokens)
    original = load_direction(direction, record)
    open_checkpoint(checkpoint, manifest)
    check_folder(adapter, read_json(statistics)["files"])
    tokenizer = load_tokenizer(checkpoint)
    # The model inside PEFT's wrapper: its modules add the adapter themselves.
    patched = load_model(checkpoint, adapter)
    assert isinstance(patched, PeftModel)
    model = patched.get_base_model()
    assert isinstance(model, PreTrainedModel)
    captured = capture_activations(model, tokenizer, prompts, tokens, settings, seed)
    verified = verify_direction(model, tokenizer, original, prompts, settings, seed)
    save_cache(captured, cache)
    write_json(verification, verified)


if __name__ == "__main__":
    run(main, model=True)

"""Score every candidate direction of a checkpoint: induce, KL and bypass."""

from pathlib import Path

from aird.directions.activation_cache import load_cache
from aird.directions.candidate_scores import score_cached_candidates
from aird.directions.score_records import mean_scores, save_scores
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.settings.directions import Directions
from aird.support.files import read_json, read_json_lines
from aird.support.tensor_files import save_tensors

from arguments import run


def main(
    checkpoint: Path,
    manifest: Path,
    cache: Path,
    refusal_tokens: Path,
    harmful: Path,
    harmless: Path,
    settings: Directions,
    scores: Path,
    prompt_scores: Path,
) -> None:
    """Run the script."""
    prompts = {"harmful": read_json_lines(harmful), "harmless": read_json_lines(harmless)}
    tokens = read_json(refusal_tokens)["tokens"]
    open_checkpoint(checkpoint, manifest)
    tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint)
    made = score_cached_candidates(model, tokenizer, load_cache(cache), prompts, tokens, settings)
    save_tensors(made, prompt_scores)
    save_scores(mean_scores(made), scores)


if __name__ == "__main__":
    run(main, model=True)

"""Score every candidate direction of a checkpoint: induce, KL and bypass."""

from aird.directions.activation_cache import load_cache
from aird.directions.candidate_scores import score_cached_candidates
from aird.directions.score_records import mean_scores, save_scores
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.prompts.sets import CLASSES
from aird.settings.directions import Directions
from aird.support.files import read_json, read_json_lines
from aird.support.tensor_files import save_tensors

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="arithmetic checkpoint manifest cache refusal_tokens harmful harmless scores prompt_scores",
        texts="settings",
        gpu=True,
    )
    begin_job(arguments)
    settings = Directions.model_validate(arguments.settings)
    prompts = {kind: read_json_lines(getattr(arguments, kind)) for kind in CLASSES}
    tokens = read_json(arguments.refusal_tokens)["tokens"]
    cache = load_cache(arguments.cache)
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    tokenizer, model = load_tokenizer(arguments.checkpoint), load_model(arguments.checkpoint)
    scores = score_cached_candidates(model, tokenizer, cache, prompts, tokens, settings)
    save_tensors(scores, arguments.prompt_scores)
    save_scores(mean_scores(scores), arguments.scores)


if __name__ == "__main__":
    main()

"""Score every candidate direction of a checkpoint: induce, KL and bypass."""

from aird.directions.activation_cache import CLASSES, kept_activations, kept_prompts_of, load_cache
from aird.directions.activations import difference_in_means
from aird.directions.candidate_scores import mean_scores, score_candidates
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.settings.directions import Directions
from aird.support.files import atomic_file, read_json, read_json_lines
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
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    tokenizer, model = load_tokenizer(arguments.checkpoint), load_model(arguments.checkpoint)
    cache = load_cache(arguments.cache)
    candidates = difference_in_means(*kept_activations(cache, "train"))
    records = {kind: read_json_lines(getattr(arguments, kind)) for kind in CLASSES}
    harmful, harmless = kept_prompts_of(cache, "validation", tokenizer, records)
    tokens = read_json(arguments.refusal_tokens)["tokens"]
    scores = score_candidates(model, candidates, harmful, harmless, tokens, settings)

    import pandas

    save_tensors(scores, arguments.prompt_scores)
    with atomic_file(arguments.scores) as temporary:
        pandas.DataFrame(mean_scores(scores)).to_csv(temporary, index=False)


if __name__ == "__main__":
    main()

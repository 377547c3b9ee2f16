"""Choose the refusal direction of a checkpoint among its scored candidates."""

import dataclasses

import pandas
import torch

from aird.activation_cache import kept_activations, kept_counts, load_cache
from aird.activations import difference_in_means
from aird.files import write_json
from aird.selection import select_site
from aird.settings.directions import Directions
from aird.stability import site_stability
from aird.tensor_files import load_tensors, save_tensors

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="cache scores prompt_scores direction record", texts="settings seed")
    settings = Directions.model_validate(arguments.settings)
    cache = load_cache(arguments.cache)
    candidates = difference_in_means(*kept_activations(cache, "train"))
    layers, positions, _ = candidates.shape
    frame = pandas.read_csv(arguments.scores)
    scores = [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
    selection = select_site(scores, layers, settings)
    vector = candidates[selection.layer, selection.position]
    chosen = next(row for row in scores if (row["layer"], row["position"]) == (selection.layer, selection.position))
    measured = {key: (None if pandas.isna(chosen[key]) else chosen[key]) for key in ("induce", "kl", "bypass")}
    norm = vector.norm(dtype=torch.float64)
    save_tensors({"unit": vector / vector.norm(), "norm": norm.reshape(1)}, arguments.direction)
    prompt_scores, _ = load_tensors(arguments.prompt_scores)
    site = (selection.layer, selection.position)
    record = {
        **dataclasses.asdict(selection),
        **measured,
        "layers": layers,
        "positions": positions,
        "candidates": layers * positions,
        "norm": vector.norm().item(),
        "prompts": kept_counts(cache),
        "stability": site_stability(prompt_scores, site, settings, int(arguments.seed)),
    }
    write_json(arguments.record, record)


if __name__ == "__main__":
    main()

"""The scores of all candidates as files and as records: per prompt, and as means over the prompts.

Apart from what computes them, so that choosing among candidates does not depend on how a model is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from aird.support.files import atomic_file

Score = dict[str, Any]  # {"layer", "position", "induce", "kl", "bypass"} of one candidate
PromptScores = dict[str, torch.Tensor]  # score name to [L, P, prompts] float64


def mean_scores(scores: PromptScores) -> list[Score]:
    """Return one record {layer, position, induce, kl, bypass} per candidate: the means over its prompts.

    Records come for all layers and positions (-P to -1), in that order; a score that is not a number is None.
    """
    layers, positions, _ = scores["induce"].shape
    # As lists: thousands of resamples ask for them, and a tensor's entry takes longer than its mean.
    means = {name: values.mean(dim=-1).tolist() for name, values in scores.items()}
    return [
        {"layer": layer, "position": position - positions}
        | {
            name: None if math.isnan(value[layer][position]) else value[layer][position]
            for name, value in means.items()
        }
        for layer in range(layers)
        for position in range(positions)
    ]


def save_scores(scores: Iterable[Score], path: Path) -> None:
    """Write one line per candidate to a CSV file, atomically; a score that is None stays empty."""
    import pandas

    with atomic_file(path) as temporary:
        pandas.DataFrame(scores).to_csv(temporary, index=False)


def load_scores(path: Path) -> list[Score]:
    """Read what `save_scores` wrote; a score that was None is NaN."""
    import pandas

    return [{str(key): value for key, value in row.items()} for row in pandas.read_csv(path).to_dict("records")]

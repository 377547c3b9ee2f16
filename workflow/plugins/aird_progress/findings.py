"""What a finished job found, in one sentence: read from the record that it wrote.

Only the nodes whose record answers a question tell something: what a compression did to the weights, how near
a checkpoint's direction is to the original's, and how often a checkpoint refuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

ORIGINAL = "original"
PLAIN = "plain"
# Bits per weight that no quantisation needs: a quantised matrix has zeros as well, but they are not the point.
DENSE_BITS = 15
LEAST_SPARSITY = 0.01  # a dense checkpoint has a few zeros too

Names = Mapping[str, str]  # wildcards of a job


def finding(rule: str, wildcards: Names, output: Sequence[str], several: Collection[str]) -> str | None:
    """Return what a finished job found, or None where there is nothing to tell.

    A record that is not there (with object storage it lies elsewhere) or that reads otherwise is nothing to tell.

    Args:
        rule: of the job.
        wildcards: of the job.
        output: the files that it wrote, as Snakemake shows them: perhaps with a remark in brackets.
        several: "model" and "suite", as far as the grid has several, so that a sentence names them.
    """
    tell = TOLD.get(rule)
    records = [path for each in output if (path := Path(re.sub(r" \([^)]*\)$", "", each))).suffix == ".json"]
    if tell is None or not records:
        return None
    try:
        sentence = tell(wildcards, _read(records[0]), records[0])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    where = [wildcards[name] for name in ("model", "suite") if name in several and name in wildcards]
    return f"{', '.join(where)}: {sentence}" if where and sentence else sentence


def refusal(wildcards: Names, score: Any, path: Path) -> str:
    """Return how often a checkpoint refuses, beside the original, whose record stands at original/plain."""
    compression, patch = wildcards["compression"], wildcards["patch"]
    beside = path.parents[2] / ORIGINAL / PLAIN / path.name
    original = _read(beside) if beside.is_file() else None
    refused, over_refused = _rate(score, "refusal"), _rate(score, "over_refusal")
    if (compression, patch) == (ORIGINAL, PLAIN):
        return f"the original refuses {refused} of harmful prompts, {over_refused} of harmless ones"
    if patch == PLAIN:
        compared = f"; the original {_rate(original, 'refusal')}" if original else ""
        return f"{compression} refuses {refused} of harmful prompts{compared}"
    base = "the original" if compression == ORIGINAL else compression
    compared = f" (original {_rate(original, 'over_refusal')})" if original else ""
    return f"{patch} on {base}: {refused}, over-refusal {over_refused}{compared}"


def weights(wildcards: Names, manifest: Any, _: Path) -> str | None:
    """Return what a compression did to the weights: zeros, or bits; None where it did neither, as a cache's."""
    total = manifest["total"]
    if total["bits_per_weight"] < DENSE_BITS:
        return f"{wildcards['compression']}: {total['bits_per_weight']:.2f} bits per weight"
    if total["sparsity"] < LEAST_SPARSITY:
        return None
    return f"{wildcards['compression']}: {100 * total['sparsity']:.1f}% of the weights are zero"


def cosine(wildcards: Names, comparison: Any, _: Path) -> str:
    """Return how near a checkpoint's direction is to the original's: corrected for noise, where that can be said."""
    value = f"cosine {comparison['cosine_same_site']:.2f}"
    corrected = comparison.get("cosine_same_site_corrected") or {"value": None}
    if corrected["value"] is not None:
        value = "corrected cosine {value:.2f} ({low:.2f} to {high:.2f})".format_map(corrected)
    return f"{wildcards['compression']}: {value} with the original's direction at the same site"


TOLD = {"compress_model": weights, "compare_directions": cosine, "score_completions": refusal}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _rate(score: Any, name: str) -> str:
    """Return a rate as per cent, without a decimal that is nought: 95%, 7.5%."""
    return f"{100 * score['rates'][name]['rate']:.1f}".removesuffix(".0") + "%"

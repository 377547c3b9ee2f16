"""The whole way from a checkpoint to its refusal direction, for one model that is loaded once.

The workflow takes the same steps as nodes of their own; for the same prompts and seed both end
with the same direction. The folder that `save_search` writes is read by `load_search`:

    direction.safetensors, direction.json    as results/directions/ has them
    scores.csv                               induce, KL and bypass of every candidate
    refusal_tokens.json                      what the scores count
    activations.safetensors                  the activation cache, which comparisons need
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aird.directions.activation_cache import (
    CLASSES,
    SPLITS,
    Cache,
    capture_cache,
    kept_activations,
    kept_prompts_of,
    load_cache,
    save_cache,
)
from aird.directions.activations import difference_in_means
from aird.directions.candidate_scores import mean_scores, score_candidates
from aird.directions.cosmic import cosmic_direction
from aird.directions.direction import Direction, choose_direction, load_direction, save_direction
from aird.directions.refusal_tokens import PROMPTS, find_refusal_tokens
from aird.models.loading import load_model, load_tokenizer
from aird.prompts.sets import select
from aird.settings.base import PromptSelection
from aird.settings.directions import Directions
from aird.support.files import atomic_file, read_json, write_json


@dataclass(frozen=True)
class Search:
    """What was found in one checkpoint.

    Attributes:
        direction: the refusal direction.
        cache: activations and refusal scores of the direction prompts.
        refusal_tokens: the record of `find_refusal_tokens`.
        scores: {layer, position, induce, kl, bypass} of every candidate; empty where they were read
            from a folder, as nothing needs them again.
    """

    direction: Direction
    cache: Cache
    refusal_tokens: dict[str, Any]
    scores: list[dict[str, Any]]


def search_direction(
    checkpoint: Path,
    harmful: Sequence[dict[str, Any]],
    harmless: Sequence[dict[str, Any]],
    settings: Directions,
    seed: int,
    refusal_tokens: dict[str, Any] | None = None,
) -> Search:
    """Return a checkpoint's refusal direction and what it rests on.

    Args:
        checkpoint: a model folder.
        harmful, harmless: prompt records with splits train and validation.
        settings: sizes and filters.
        seed: decides which prompts of a split are used.
        refusal_tokens: those of the original where this is a compressed model; None finds them.

    Raises:
        ValueError: too few prompts, or a model whose scores are no numbers.
    """
    records = dict(zip(CLASSES, (harmful, harmless), strict=True))

    def chosen(kind: str, split: str, count: int) -> list[dict[str, Any]]:
        return select(records[kind], PromptSelection(set=kind, split=split, count=count), seed)

    prompts = {(kind, split): chosen(kind, split, getattr(settings, split)) for kind in CLASSES for split in SPLITS}
    tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint)
    if refusal_tokens is None:
        asked, answered = (
            [record["instruction"] for record in chosen(kind, "train", min(PROMPTS, settings.train))]
            for kind in CLASSES
        )
        refusal_tokens = find_refusal_tokens(model, tokenizer, asked, answered)
    tokens = refusal_tokens["tokens"]
    cache = capture_cache(model, tokenizer, prompts, tokens)
    candidates = difference_in_means(*kept_activations(cache, "train"))
    validation = kept_prompts_of(cache, "validation", tokenizer, records)
    prompt_scores = score_candidates(model, candidates, *validation, tokens, settings)
    scores = mean_scores(prompt_scores)
    cosmic = cosmic_direction(model, cache, *validation, settings) if settings.may_use_cosmic else None
    direction = choose_direction(cache, scores, prompt_scores, settings, seed, cosmic)
    return Search(direction, cache, refusal_tokens, scores)


def save_search(search: Search, folder: Path) -> None:
    """Write a search's files into a folder."""
    import pandas

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "refusal_tokens.json", search.refusal_tokens)
    save_cache(search.cache, folder / "activations.safetensors")
    with atomic_file(folder / "scores.csv") as temporary:
        pandas.DataFrame(search.scores).to_csv(temporary, index=False)
    save_direction(search.direction, folder / "direction.safetensors", folder / "direction.json")


def is_search(folder: Path) -> bool:
    """Tell whether a folder is one that `save_search` wrote."""
    return (folder / "direction.json").is_file()


def load_search(folder: Path) -> Search:
    """Read what `save_search` wrote, without the scores.

    Raises:
        ValueError: a file is missing, truncated or altered.
    """
    for name in ("refusal_tokens.json", "activations.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds a direction but no {name}; make it with `aird direction`")
    return Search(
        load_direction(folder / "direction.safetensors", folder / "direction.json"),
        load_cache(folder / "activations.safetensors"),
        read_json(folder / "refusal_tokens.json"),
        [],
    )

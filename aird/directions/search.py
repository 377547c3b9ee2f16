"""The whole way from a checkpoint to its refusal direction: the nodes of this stage, one after the other.

The workflow runs each of them as a node of its own; for the same prompts and seed both end with the same direction.
The folder that `save_search` writes is read by `load_search`:

    direction.safetensors, direction.json    as results/directions/ has them
    scores.csv                               induce, KL and bypass of every candidate
    refusal_tokens.json                      what the scores count
    activations.safetensors                  the activation cache, which comparisons need
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aird.directions.activation_cache import ActivationCache, load_cache, save_cache
from aird.directions.activations import capture_activations
from aird.directions.candidate_scores import score_cached_candidates
from aird.directions.choice import choose_direction
from aird.directions.cosmic import find_cosmic_direction
from aird.directions.direction import Direction, load_direction, save_direction
from aird.directions.refusal_tokens import RefusalTokens, find_refusal_tokens
from aird.directions.score_records import Score, mean_scores, save_scores
from aird.prompts.sets import Record
from aird.settings.directions import Directions
from aird.support.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Search:
    """The refusal direction of one checkpoint, and what it rests on.

    Attributes:
        direction: the refusal direction.
        cache: activations and refusal scores of the direction prompts.
        refusal_tokens: the record of `find_refusal_tokens`.
        scores: {layer, position, induce, kl, bypass} of every candidate; empty where they were read
            from a folder, as nothing needs them again.
    """

    direction: Direction
    cache: ActivationCache
    refusal_tokens: RefusalTokens
    scores: list[Score]


def search_direction(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[str, Sequence[Record]],
    settings: Directions,
    seed: int,
    refusal_tokens: RefusalTokens | None = None,
) -> Search:
    """Return a checkpoint's refusal direction and what it rests on.

    Args:
        model, tokenizer: the checkpoint.
        prompts: class to prompt records with splits train and validation.
        settings: sizes and filters.
        seed: decides which prompts of a split are used.
        refusal_tokens: those of the original where this is a compressed model; None derives them from this one.

    Raises:
        ValueError: too few prompts, or a model whose scores are no numbers.
    """
    if refusal_tokens is None:
        refusal_tokens = find_refusal_tokens(model, tokenizer, prompts, settings, seed)
    cache = capture_activations(model, tokenizer, prompts, refusal_tokens, settings, seed)
    prompt_scores = score_cached_candidates(model, tokenizer, cache, prompts, refusal_tokens["tokens"], settings)
    scores = mean_scores(prompt_scores)
    cosmic = find_cosmic_direction(model, tokenizer, cache, prompts, settings) if settings.may_use_cosmic else None
    direction = choose_direction(cache, scores, prompt_scores, settings, seed, cosmic)
    return Search(direction, cache, refusal_tokens, scores)


def save_search(search: Search, folder: Path) -> None:
    """Write a search's files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "refusal_tokens.json", search.refusal_tokens)
    save_cache(search.cache, folder / "activations.safetensors")
    save_scores(search.scores, folder / "scores.csv")
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

"""The activation cache of one checkpoint: what later nodes read instead of running the model.

One safetensors file. For each class (harmful, harmless) and split (train,
validation) it holds `{class}.{split}.activations` [prompts, L, P, d_model] in the
model's type and `{class}.{split}.scores` [prompts] float64; its metadata holds the
prompt ids, in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aird.directions.activations import capture
from aird.directions.selection import kept_prompts
from aird.prompts.chat import chat_tokens, post_instruction_tokens
from aird.support.tensor_files import load_tensors, save_tensors

CLASSES = ("harmful", "harmless")
SPLITS = ("train", "validation")
MINIMUM_KEPT = 8  # below that many rightly classified prompts the filter is dropped, and reported


@dataclass(frozen=True)
class Group:
    """The prompts of one class and split.

    Attributes:
        activations: [n, L, P, d_model], block inputs at the post-instruction tokens.
        scores: [n] float64, refusal scores of the unmodified model.
        ids: ids of the prompts.
    """

    activations: torch.Tensor
    scores: torch.Tensor
    ids: tuple[str, ...]

    def kept(self, harmful: bool) -> tuple[list[int], bool]:
        """Return the indices of rightly classified prompts, and whether that filter could be used."""
        return kept_prompts(self.scores, harmful, min(MINIMUM_KEPT, len(self.ids)))


Cache = dict[tuple[str, str], Group]  # (class, split) -> group


def capture_cache(
    model: Any,
    tokenizer: Any,
    records: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    refusal_tokens: Sequence[int],
) -> Cache:
    """Run a model once over the direction prompts, and return its activations and refusal scores.

    Args:
        model, tokenizer: the checkpoint.
        records: (class, split) to prompt records with id and instruction.
        refusal_tokens: ids that make the refusal score.
    """
    positions = len(post_instruction_tokens(tokenizer))
    cache = {}
    for key, chosen in records.items():
        prompts = [chat_tokens(tokenizer, record["instruction"]) for record in chosen]
        activations, scores = capture(model, prompts, positions, refusal_tokens)
        cache[key] = Group(activations, scores, tuple(record["id"] for record in chosen))
    return cache


def save_cache(cache: Cache, path: Path) -> None:
    """Write a cache to one file, atomically."""
    tensors, ids = {}, {}
    for (kind, split), group in cache.items():
        tensors[f"{kind}.{split}.activations"] = group.activations
        tensors[f"{kind}.{split}.scores"] = group.scores
        ids[f"{kind}.{split}"] = group.ids
    save_tensors(tensors, path, {"ids": json.dumps(ids)})


def load_cache(path: Path) -> Cache:
    """Read a cache.

    Raises:
        ValueError: the file is truncated or altered.
    """
    tensors, metadata = load_tensors(path)
    ids = json.loads(metadata["ids"])
    return {
        (kind, split): Group(
            tensors[f"{kind}.{split}.activations"], tensors[f"{kind}.{split}.scores"], tuple(ids[f"{kind}.{split}"])
        )
        for kind in CLASSES
        for split in SPLITS
    }


def kept_activations(cache: Cache, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (harmful, harmless) activations of the rightly classified prompts of a split."""
    groups = [cache[kind, split] for kind in CLASSES]
    harmful, harmless = (
        group.activations[group.kept(kind == "harmful")[0]] for kind, group in zip(CLASSES, groups, strict=True)
    )
    return harmful, harmless


def kept_prompts_of(
    cache: Cache, split: str, tokenizer: Any, records: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the token ids of the rightly classified (harmful, harmless) prompts of a split.

    Args:
        cache: the checkpoint's cache.
        split: train or validation.
        tokenizer: the checkpoint's tokenizer.
        records: class to prompt records with id and instruction; more than the cache's do no harm.
    """
    found = []
    for kind in CLASSES:
        texts = {record["id"]: record["instruction"] for record in records[kind]}
        group = cache[kind, split]
        kept, _ = group.kept(kind == "harmful")
        found.append([chat_tokens(tokenizer, texts[group.ids[index]]) for index in kept])
    harmful, harmless = found
    return harmful, harmless


def kept_counts(cache: Cache) -> dict[str, dict[str, int | bool]]:
    """Return, per class and split, how many prompts there are, are used, and whether they were filtered."""
    counts: dict[str, dict[str, int | bool]] = {}
    for (kind, split), group in cache.items():
        kept, filtered = group.kept(kind == "harmful")
        counts[f"{kind}_{split}"] = {"n": len(group.ids), "used": len(kept), "filtered": filtered}
    return counts

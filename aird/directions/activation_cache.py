"""The activation cache of one checkpoint: what later nodes read instead of running the model.

One safetensors file, written by aird/directions/activations.py. For each class (harmful, harmless) and split (train,
validation) it holds `{class}.{split}.activations` [prompts, L, P, d_model] in the model's type and
`{class}.{split}.scores` [prompts] float64; its metadata holds the prompt ids, in the same order, and the lead of the
replies where there is one. `candidates`
[L, P, d_model] float64 are the differences in means of the rightly classified training prompts: the candidate
directions that every later node scores, chooses from and compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from aird.directions.candidates import difference_in_means
from aird.prompts.chat import chat_tokens
from aird.prompts.sets import CLASSES, Record
from aird.support.tensor_files import load_tensors, save_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        return kept_prompts(self.scores.tolist(), harmful, min(MINIMUM_KEPT, len(self.ids)))


Groups = Mapping[tuple[str, str], Group]  # (class, split) -> group


@dataclass(frozen=True)
class ActivationCache:
    """What is kept of one checkpoint's run over the direction prompts.

    Attributes:
        groups: (class, split) to its prompts.
        candidates: [L, P, d_model] float64, raw differences in means.
        lead: the tokens that all replies begin with (`aird.directions.refusal_tokens`); every prompt was run with them
            behind it, and they are its last post-instruction tokens.
    """

    groups: Groups
    candidates: torch.Tensor
    lead: tuple[int, ...] = ()

    @classmethod
    def of(cls, groups: Groups, lead: Sequence[int] = ()) -> ActivationCache:
        """Return the cache of these groups, whose training prompts give the candidate directions."""
        return cls(groups, difference_in_means(*_kept_activations(groups, "train")), tuple(lead))

    def kept_activations(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (harmful, harmless) activations of the rightly classified prompts of a split."""
        return _kept_activations(self.groups, split)


def kept_prompts(scores: Iterable[float], harmful: bool, minimum: int) -> tuple[list[int], bool]:
    """Return the indices of the prompts that the model itself classifies rightly, and whether the filter held.

    A harmful prompt is kept if its refusal score is at least 0, a harmless one if it is at most 0
    (arXiv 2406.11717, appendix A). A damaged model can lose most of them; below `minimum` kept
    prompts a mean would be noise, so all are used and the second value is False.

    Args:
        scores: [n] refusal scores of the plain model.
        harmful: which class they belong to.
        minimum: fewest prompts that make the filter usable.
    """
    values = list(scores)
    kept = [index for index, value in enumerate(values) if (value >= 0 if harmful else value <= 0)]
    if len(kept) >= minimum:
        return kept, True
    return list(range(len(values))), False


def save_cache(cache: ActivationCache, path: Path) -> None:
    """Write a cache to one file, atomically."""
    tensors, ids = {"candidates": cache.candidates}, {}
    for (kind, split), group in cache.groups.items():
        tensors[f"{kind}.{split}.activations"] = group.activations
        tensors[f"{kind}.{split}.scores"] = group.scores
        ids[f"{kind}.{split}"] = group.ids
    lead = {"lead": json.dumps(cache.lead)} if cache.lead else {}
    save_tensors(tensors, path, {"ids": json.dumps(ids), **lead})


def load_cache(path: Path) -> ActivationCache:
    """Read a cache.

    Raises:
        ValueError: the file is truncated or altered.
    """
    tensors, metadata = load_tensors(path)
    ids = json.loads(metadata["ids"])
    groups = {
        (kind, split): Group(
            tensors[f"{kind}.{split}.activations"], tensors[f"{kind}.{split}.scores"], tuple(ids[f"{kind}.{split}"])
        )
        for kind in CLASSES
        for split in SPLITS
    }
    return ActivationCache(groups, tensors["candidates"], tuple(json.loads(metadata.get("lead", "[]"))))


def kept_tokens(
    cache: ActivationCache, split: str, tokenizer: PreTrainedTokenizerBase, prompts: Mapping[str, Sequence[Record]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the token ids of the rightly classified (harmful, harmless) prompts of a split, with the cache's lead.

    Args:
        cache: the checkpoint's cache.
        split: train or validation.
        tokenizer: the checkpoint's tokenizer.
        prompts: class to prompt records with id and instruction; more than the cache's do no harm.
    """
    tokens = []
    for kind in CLASSES:
        texts = {record["id"]: record["instruction"] for record in prompts[kind]}
        group = cache.groups[kind, split]
        kept, _ = group.kept(kind == "harmful")
        tokens.append([[*chat_tokens(tokenizer, texts[group.ids[index]]), *cache.lead] for index in kept])
    harmful, harmless = tokens
    return harmful, harmless


def kept_counts(cache: ActivationCache) -> dict[str, dict[str, int | bool]]:
    """Return, per class and split, how many prompts there are, are used, and whether they were filtered."""
    counts: dict[str, dict[str, int | bool]] = {}
    for (kind, split), group in cache.groups.items():
        kept, filtered = group.kept(kind == "harmful")
        counts[f"{kind}_{split}"] = {"n": len(group.ids), "used": len(kept), "filtered": filtered}
    return counts


def _kept_activations(groups: Groups, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    harmful, harmless = (
        groups[kind, split].activations[groups[kind, split].kept(kind == "harmful")[0]] for kind in CLASSES
    )
    return harmful, harmless

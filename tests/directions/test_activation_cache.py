"""The activation cache: what is written comes back, and a damaged file says so."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from aird.directions.activation_cache import ActivationCache, Group, kept_counts, kept_prompts, load_cache, save_cache
from aird.support.tensor_files import load_tensors


def make_cache(count: int = 10) -> ActivationCache:
    generator = torch.Generator().manual_seed(0)
    groups = {}
    for kind in ("harmful", "harmless"):
        for split in ("train", "validation"):
            activations = torch.randn(count, 2, 3, 4, generator=generator).bfloat16()
            sign = 1 if kind == "harmful" else -1
            scores = sign * torch.tensor([1.0] * (count - 1) + [-1.0], dtype=torch.float64)
            ids = tuple(f"{kind}-{split}-{index}" for index in range(count))
            groups[kind, split] = Group(activations, scores, ids)
    return ActivationCache.of(groups)


def test_round_trip(tmp_path: Path) -> None:
    cache = make_cache()
    save_cache(cache, tmp_path / "cache.safetensors")
    loaded = load_cache(tmp_path / "cache.safetensors")
    assert loaded.groups.keys() == cache.groups.keys()
    for key, group in cache.groups.items():
        assert torch.equal(loaded.groups[key].activations, group.activations)
        assert loaded.groups[key].activations.dtype == torch.bfloat16
        assert torch.equal(loaded.groups[key].scores, group.scores)
        assert loaded.groups[key].ids == group.ids
    assert loaded.candidates.dtype == torch.float64 and torch.equal(loaded.candidates, cache.candidates)
    assert loaded.lead == () and load_tensors(tmp_path / "cache.safetensors")[1].keys() == {"ids"}
    assert [path.name for path in tmp_path.iterdir()] == ["cache.safetensors"]
    save_cache(ActivationCache.of(cache.groups, [5, 7]), tmp_path / "cache.safetensors")
    assert load_cache(tmp_path / "cache.safetensors").lead == (5, 7)


@pytest.mark.parametrize("damage", ["truncated", "altered activation", "altered id"])
def test_a_damaged_cache_says_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "cache.safetensors"
    save_cache(make_cache(), path)
    content = path.read_bytes()
    if damage == "truncated":
        content = content[:-100]
    elif damage == "altered activation":
        content = content[:-1] + bytes([content[-1] ^ 1])
    else:
        content = content.replace(b"harmful-train-3", b"harmful-train-9")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cache.safetensors cannot be read .*; delete it"):
        load_cache(path)


def test_kept_prompts_of_a_class() -> None:
    cache = make_cache()
    harmful, harmless = cache.kept_activations("train")
    # The last prompt of each class is misclassified; the candidates rest on the others.
    assert torch.equal(harmful, cache.groups["harmful", "train"].activations[:9])
    assert torch.equal(harmless, cache.groups["harmless", "train"].activations[:9])
    assert torch.equal(cache.candidates, harmful.double().mean(dim=0) - harmless.double().mean(dim=0))
    assert kept_counts(cache) == {
        f"{kind}_{split}": {"n": 10, "used": 9, "filtered": True}
        for kind in ("harmful", "harmless")
        for split in ("train", "validation")
    }


def test_the_filter_is_dropped_below_eight_prompts() -> None:
    cache = make_cache(8)  # seven are classified rightly
    assert kept_counts(cache)["harmful_train"] == {"n": 8, "used": 8, "filtered": False}
    assert len(cache.kept_activations("train")[0]) == 8


def test_kept_prompts() -> None:
    scores = [1.0, -0.5, 0.0, 3.0, -2.0]
    assert kept_prompts(scores, True, 3) == ([0, 2, 3], True)
    assert kept_prompts(scores, False, 3) == ([1, 2, 4], True)


def test_too_few_kept_prompts_means_all_of_them() -> None:
    scores = [1.0, -0.5, math.nan, -2.0]
    assert kept_prompts(scores, True, 1) == ([0], True)
    assert kept_prompts(scores, True, 2) == ([0, 1, 2, 3], False)

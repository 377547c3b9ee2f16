"""The activation cache: what is written comes back, and a damaged file says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aird.directions.activation_cache import Cache, Group, kept_activations, kept_counts, load_cache, save_cache


def make_cache(count: int = 10) -> Cache:
    generator = torch.Generator().manual_seed(0)
    cache: Cache = {}
    for kind in ("harmful", "harmless"):
        for split in ("train", "validation"):
            activations = torch.randn(count, 2, 3, 4, generator=generator).bfloat16()
            sign = 1 if kind == "harmful" else -1
            scores = sign * torch.tensor([1.0] * (count - 1) + [-1.0], dtype=torch.float64)
            ids = tuple(f"{kind}-{split}-{index}" for index in range(count))
            cache[kind, split] = Group(activations, scores, ids)
    return cache


def test_round_trip(tmp_path: Path) -> None:
    cache = make_cache()
    save_cache(cache, tmp_path / "cache.safetensors")
    loaded = load_cache(tmp_path / "cache.safetensors")
    assert loaded.keys() == cache.keys()
    for key, group in cache.items():
        assert torch.equal(loaded[key].activations, group.activations)
        assert loaded[key].activations.dtype == torch.bfloat16
        assert torch.equal(loaded[key].scores, group.scores)
        assert loaded[key].ids == group.ids
    assert [path.name for path in tmp_path.iterdir()] == ["cache.safetensors"]


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


def test_kept_prompts_of_a_class(tmp_path: Path) -> None:
    cache = make_cache()
    harmful, harmless = kept_activations(cache, "train")
    # The last prompt of each class is misclassified.
    assert torch.equal(harmful, cache["harmful", "train"].activations[:9])
    assert torch.equal(harmless, cache["harmless", "train"].activations[:9])
    assert kept_counts(cache) == {
        f"{kind}_{split}": {"n": 10, "used": 9, "filtered": True}
        for kind in ("harmful", "harmless")
        for split in ("train", "validation")
    }


def test_the_filter_is_dropped_below_eight_prompts() -> None:
    cache = make_cache(8)  # seven are classified rightly
    assert kept_counts(cache)["harmful_train"] == {"n": 8, "used": 8, "filtered": False}
    assert len(kept_activations(cache, "train")[0]) == 8

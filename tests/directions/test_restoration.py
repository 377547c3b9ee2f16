"""The direction of a patched checkpoint: three checkpoints at one site, and the real way from an adapter to its states."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from grid import prompt_records
from patches import merged, saved_direction, unit_vector
from test_comparison import KEPT, SWAPPED, cache, side
from tiny_model import changed_tensors

from aird.directions.activations import capture_activations
from aird.directions.direction import load_direction
from aird.directions.restoration import compare_restored
from aird.directions.verification import verify_direction
from aird.inference.hooks import ablation
from aird.models.blocks import decoder_blocks
from aird.models.loading import load_model
from aird.models.structure import writer_modules
from aird.patching.adapters import load_adapter
from aird.patching.method import PatchInputs
from aird.patching.methods import parse_patch
from aird.patching.patch_files import make_patch
from aird.settings.directions import Directions

HALFWAY = torch.eye(4, dtype=torch.float64)
HALFWAY[0, :2] = torch.tensor([0.6, 0.8])
HALFWAY[1, :2] = torch.tensor([-0.8, 0.6])


def test_a_direction_that_turned_comes_back_in_part_or_in_full() -> None:
    original = side(cache(None, KEPT), 0, 1, -1)
    turned, halfway = cache(SWAPPED, KEPT), cache(HALFWAY, KEPT)
    record = compare_restored(original, turned, halfway, 0)
    assert record["site"] == {"layer": 1, "position": -1}
    cosines = {name: each["corrected_cosine"]["value"] for name, each in record["checkpoints"].items()}
    assert cosines == {
        "original": pytest.approx(1),
        "compressed": pytest.approx(0, abs=0.2),
        "patched": pytest.approx(0.6, abs=0.15),
    }
    gain = record["corrected_cosine_gain"]
    assert gain["value"] == pytest.approx(cosines["patched"] - cosines["compressed"])
    assert 0 < gain["low"] < gain["value"] < gain["high"] and gain["undefined"] == 0
    full = compare_restored(original, turned, cache(2 * torch.eye(4, dtype=torch.float64), KEPT), 0)
    assert full["checkpoints"]["patched"]["corrected_cosine"]["value"] == pytest.approx(1)
    assert full["checkpoints"]["patched"]["norm_ratio"] == pytest.approx(2)
    assert full["checkpoints"]["patched"]["norm_ratio_bootstrap"]["low"] == pytest.approx(2)
    means = {name: each["projections"]["harmful"]["mean"] for name, each in full["checkpoints"].items()}
    assert (
        means["patched"] == pytest.approx(2 * means["original"]) and abs(means["compressed"]) < 0.7 < means["original"]
    )


def test_a_patch_that_does_nothing_gains_nothing() -> None:
    original, turned = side(cache(None, KEPT), 0, 1, -1), cache(HALFWAY, KEPT)
    gain = compare_restored(original, turned, turned, 0)["corrected_cosine_gain"]
    assert (gain["value"], gain["low"], gain["high"]) == (0, 0, 0)


def test_checkpoints_that_saw_other_prompts_are_not_compared() -> None:
    original, other = side(cache(None, KEPT), 0, 1, -1), cache(None, [1.0] * 20, 20)
    for caches in ((other, original.cache), (original.cache, other)):
        with pytest.raises(ValueError, match="different harmful train prompts"):
            compare_restored(original, *caches, 0)


SETTINGS = Directions(harmful="harmful", harmless="harmless", train=6, validation=4, test=4, test_new_tokens=4)
RECORDS = prompt_records(train=6, validation=4, test=4)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_checkpoint_with_its_adapter_is_captured_and_verified_as_the_merged_one(
    family: str, tiny_folder: Callable[[str], Path], tokenizer: Any, tmp_path: Path
) -> None:
    """The model inside PEFT's wrapper is one as any other: blocks, contributions, packs and replies."""
    # In float32, as bfloat16 rounds a merged matrix.
    base = Path(shutil.copytree(tiny_folder(family), tmp_path / "base"))
    with changed_tensors(base) as tensors:
        tensors |= {name: tensor.float() for name, tensor in tensors.items()}
    files = saved_direction(tmp_path, unit_vector(0))
    direction = load_direction(*files)
    settings = parse_patch({"method": "scale", "alpha": 4.0, "blocks": [0, 1]})
    make_patch(settings, PatchInputs("base", base, base, files), tmp_path / "adapter", tmp_path / "statistics.json")
    merged(base, load_adapter(tmp_path / "adapter"), tmp_path / "merged")
    float32 = {"dtype": torch.float32}
    models = {
        "plain": load_model(base, **float32),
        "adapter": load_model(base, tmp_path / "adapter", **float32).get_base_model(),
        "merged": load_model(tmp_path / "merged", **float32),
    }
    caches = {
        name: capture_activations(each, tokenizer, RECORDS, {"tokens": [3]}, SETTINGS, 0)
        for name, each in models.items()
    }
    states = {name: each.groups["harmful", "train"].activations for name, each in caches.items()}
    torch.testing.assert_close(states["adapter"], states["merged"], atol=1e-4, rtol=1e-4)
    # What the edited blocks 0 and 1 write stands from layer 1 on.
    assert torch.equal(states["adapter"][:, 0], states["plain"][:, 0])
    assert (states["adapter"][:, 1:] - states["plain"][:, 1:]).abs().max() > 0.01
    labels = {
        name: verify_direction(models[name], tokenizer, direction, RECORDS, SETTINGS, 0)["labels"]
        for name in ("adapter", "merged")
    }
    assert labels["adapter"] == labels["merged"]
    blocks = list(decoder_blocks(models["adapter"]))
    with ablation(blocks, writer_modules(models["adapter"]), direction.unit):
        ablated = capture_activations(models["adapter"], tokenizer, RECORDS, {"tokens": [3]}, SETTINGS, 0)
    # The hooks of the capture stand behind those of the ablation: the state that a block gets holds nothing of r.
    assert (ablated.groups["harmful", "train"].activations[:, 1:].double() @ direction.unit).abs().max() < 1e-4

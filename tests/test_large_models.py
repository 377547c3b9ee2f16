"""Models larger than one device's memory: sharded checkpoints, and blocks that accelerate keeps on the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from patches import random_edits
from tiny_model import logits_of
from transformers import AutoModelForCausalLM

from aird.compression.compress import compress
from aird.compression.recipes.awq import AWQ
from aird.compression.recipes.magnitude import Magnitude
from aird.compression.recipes.round_to_nearest import RoundToNearest
from aird.directions.activations import capture
from aird.directions.candidate_scores import score_candidates
from aird.directions.candidates import difference_in_means
from aird.models.checkpoint import read_checkpoint
from aird.models.importing import import_model
from aird.models.loading import load_model
from aird.models.matrices import dense_matrix
from aird.patching.adapters import merge
from aird.patching.edits import Edit
from aird.settings.compressions import CalibrationSettings
from aird.settings.directions import Directions

REFUSAL_TOKENS = [40, 318, 7]
POSITIONS = 3
PROMPTS = [[1, 5 + number, 30 + number % 7, 2, 60, 61, 62] for number in range(12)]
MODULES = ("model.layers.0.self_attn.o_proj", "model.layers.3.mlp.down_proj")


@pytest.fixture(scope="module")
def sharded(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in several files with an index."""
    folder = tmp_path_factory.mktemp("sharded") / "model"
    shutil.copytree(original, folder)
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(original, dtype="auto").save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def edits() -> list[Edit]:
    return random_edits(MODULES, 0.3)


@pytest.mark.parametrize(
    "settings",
    [
        Magnitude(sparsity=0.3),
        RoundToNearest(weight_bits=4, group_size=32),
        pytest.param(
            AWQ(group_size=32, calibration=CalibrationSettings(prompt_set="harmless", count=len(PROMPTS))),
            marks=pytest.mark.thorough,
        ),
    ],
    ids=lambda settings: settings.recipe,
)
def test_shards_go_through_every_stage_as_one_file_does(
    settings: Any, original: Path, sharded: Path, tmp_path: Path
) -> None:
    """Import, compress, capture and merge give the same tensors from shards as from one file."""
    made = {}
    for name, source in (("whole", original), ("sharded", sharded)):
        imported, compressed, merged = (tmp_path / name / part for part in ("imported", "compressed", "merged"))
        imported.mkdir(parents=True)
        merged.mkdir()
        import_model(source, imported, "bfloat16")
        compress(imported, compressed, settings, PROMPTS if settings.needs_calibration else None)
        merge(compressed, edits(), merged)
        made[name] = [read_checkpoint(folder).tensors for folder in (imported, compressed, merged)]
        for folder in (imported, compressed, merged):
            index = folder / "model.safetensors.index.json"
            if index.is_file():
                located = json.loads(index.read_text())["weight_map"]
                assert {
                    tensor: stored.file.name for tensor, stored in read_checkpoint(folder).tensors.items()
                } == located
        edited = {module: dense_matrix(merged, module) for module in MODULES}
        before = {module: dense_matrix(compressed, module) for module in MODULES}
        for edit in edits():
            change = edited[edit.module].float() - before[edit.module].float()
            assert (change - edit.matrix().float()).abs().max() < 0.02
        assert torch.isfinite(logits_of(load_model(merged), torch.tensor(PROMPTS))).all()
    for one, other in zip(made["whole"], made["sharded"], strict=True):
        assert {name: tensor.sha256() for name, tensor in one.items()} == {
            name: tensor.sha256() for name, tensor in other.items()
        }


def offloaded(checkpoint: Path, folder: Path, device_map: dict[str, str]) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, device_map=device_map, offload_folder=str(folder)
    )
    model.eval()
    model.requires_grad_(False)
    return model


@pytest.mark.parametrize("where", ["later blocks", "first block", "every block"])
def test_blocks_on_the_disk_give_the_same_activations_and_scores(where: str, original: Path, tmp_path: Path) -> None:
    """Accelerate loads a block when its turn comes; hooks, skipped blocks and early ends must not disturb it."""
    places = {
        "later blocks": {"model.layers.2": "disk", "model.layers.3": "disk"},
        "first block": {"model.layers.0": "disk"},
        "every block": {f"model.layers.{layer}": "disk" for layer in range(4)},
    }[where]
    names = ["model.embed_tokens", *(f"model.layers.{layer}" for layer in range(4)), "model.norm", "lm_head"]
    device_map = {name: places.get(name, "cpu") for name in [*names, "model.rotary_emb"]}
    expected_model = load_model(original, dtype=torch.float32)
    model = offloaded(original, tmp_path / "offload", device_map)
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    harmful, harmless = PROMPTS[:6], PROMPTS[6:]
    settings = Directions(harmful="a", harmless="b", minimum_induce=-1000.0)
    found = []
    for each in (expected_model, model):
        states = [capture(each, prompts, POSITIONS, REFUSAL_TOKENS) for prompts in (harmful, harmless)]
        candidates = difference_in_means(states[0][0], states[1][0])
        scores = score_candidates(each, candidates, harmful[:3], harmless[:3], REFUSAL_TOKENS, settings)
        found.append((states, scores))
    for (one, refusal), (other, other_refusal) in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(one, other)
        assert torch.equal(refusal, other_refusal)
    for name, values in found[0][1].items():
        assert torch.allclose(values, found[1][1][name], rtol=0, atol=1e-9, equal_nan=True), name
        assert bool(values.isfinite().any())

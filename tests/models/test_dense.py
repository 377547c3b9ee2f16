"""Dense copies of quantised checkpoints: shard by shard, and with the numbers that the checkpoint computes with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import new

from aird.compression.compress import compress
from aird.compression.recipes.bitsandbytes import BitsAndBytes
from aird.compression.recipes.round_to_nearest import RoundToNearest
from aird.models import dense
from aird.models.checkpoint import read_checkpoint
from aird.models.dense import computed_dtype, model_with_gradients, write_dense_copy
from aird.models.loading import load_model
from aird.support import processor
from aird.support.files import read_json


@pytest.fixture(scope="module")
def int8(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "int8"
    compress(original, folder, BitsAndBytes(variant="int8"), None)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_is_written_shard_by_shard(
    int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    write_dense_copy(int8, new(tmp_path / "one"), dtype)
    (whole,) = (tmp_path / "one").glob("*.safetensors")
    assert whole.name == "model.safetensors" and not (tmp_path / "one/model.safetensors.index.json").exists()
    expected = load_file(whole)
    largest = max(tensor.nbytes for tensor in expected.values())
    monkeypatch.setattr(dense, "SHARD_BYTES", largest)
    write_dense_copy(int8, new(tmp_path / "many"), dtype)
    shards = [load_file(path) for path in (tmp_path / "many").glob("*.safetensors")]
    assert len(shards) > 4
    assert max(sum(tensor.nbytes for tensor in shard.values()) for shard in shards) <= largest
    found = read_checkpoint(tmp_path / "many")
    assert found.tensors.keys() == expected.keys() and found.quantization_config is None
    assert all(torch.equal(found.tensors[name].load(), tensor) for name, tensor in expected.items())
    tokens = torch.tensor([[5, 18, 21, 48]])
    one, many = (load_model(tmp_path / name, dtype=dtype)(tokens).logits for name in ("one", "many"))
    assert torch.equal(one, many)


@pytest.mark.parametrize(("computes", "copied"), [("bfloat16", "BF16"), ("float32", "F32")])
def test_a_copy_has_the_type_that_is_computed_in(
    int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computes: str, copied: str
) -> None:
    """On a GPU, and on a processor that is as fast in it, the checkpoint's own: float32 would be rounded at once."""
    monkeypatch.setattr(processor, "_followed", {"bfloat16": computes})
    write_dense_copy(int8, new(tmp_path / "copy"), computed_dtype(int8))
    matrix = read_checkpoint(tmp_path / "copy").tensors["model.layers.0.mlp.down_proj.weight"]
    assert matrix.dtype == copied
    assert read_json(tmp_path / "copy/config.json")["dtype"] == "bfloat16"
    write_dense_copy(int8, new(tmp_path / "float32"), torch.float32)
    models = [load_model(tmp_path / name) for name in ("copy", "float32")]
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert ours.dtype == getattr(torch, computes) and torch.equal(ours, theirs)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert computed_dtype(int8) == torch.bfloat16


def test_a_copy_for_gradients_is_made_where_it_is_told_and_removed(original: Path, tmp_path: Path) -> None:
    compress(original, tmp_path / "w8a8", RoundToNearest(weight_bits=8, activation_bits=8), None)
    scratch = new(tmp_path / "scratch")
    with model_with_gradients(tmp_path / "w8a8", scratch):
        assert [path.is_dir() for path in scratch.iterdir()] == [True]
    assert not list(scratch.iterdir())

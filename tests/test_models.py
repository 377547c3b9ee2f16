"""Importing a model: what is broken is named before any job works with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from aird.models import import_model


@pytest.fixture
def source(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "source"))


def imported(source: Path, tmp_path: Path) -> Path:
    target = tmp_path / "target"
    target.mkdir()
    import_model(source, target, "bfloat16")
    return target


def test_a_folder_is_copied_bit_by_bit(source: Path, tmp_path: Path) -> None:
    target = imported(source, tmp_path)
    assert (target / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_truncated_weights(source: Path, tmp_path: Path) -> None:
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"source: model.safetensors is truncated or altered .*; fetch it again"):
        imported(source, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(source: Path, tmp_path: Path, value: float) -> None:
    tensors = load_file(source / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.weight"))
    tensors[name][3, 1] = value
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"source: tensor {name} of model.safetensors holds NaN or infinite"):
        imported(source, tmp_path)


def test_a_shard_without_its_tensors(source: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    index = {
        "metadata": {},
        "weight_map": {**dict.fromkeys(tensors, "model.safetensors"), "absent": "model.safetensors"},
    }
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lists absent .*no shard holds it"):
        imported(source, tmp_path)


def test_pickled_weights_are_not_read(source: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds no \*.safetensors file"):
        imported(source, tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_gguf(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", numpy.ones((64, 32), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=r"model.gguf cannot be read as a GGUF model .*; fetch it again"):
        imported(path, tmp_path)

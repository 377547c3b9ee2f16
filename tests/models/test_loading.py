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
from transformers import GPT2Config, GPT2LMHeadModel

from aird.models import loading
from aird.models.loading import code_is_trusted, import_model, load_model, open_checkpoint
from aird.support.files import hash_folder, write_json


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


def test_blocks_that_aird_cannot_edit(source: Path, tmp_path: Path) -> None:
    """GPT-2's blocks end in layers that are not linear modules: said at the import, not hours later."""
    config = GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(source)
    with pytest.raises(
        ValueError, match=r"no matrix of this model can be edited: transformer\.h\.0\.attn\.c_proj \(Conv1D\)"
    ):
        imported(source, tmp_path)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def with_code(source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a model folder that needs its own code, and trust nothing yet."""
    monkeypatch.setattr(loading, "_trusted", [])
    (source / "own.py").write_text(CODE, encoding="utf-8")
    config = json.loads((source / "config.json").read_text())
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": code}
    (source / "config.json").write_text(json.dumps(config))
    return source


def test_code_of_a_model_runs_only_where_it_is_trusted(with_code: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source needs modelling code of its own; .* trust_remote_code: true"):
        imported(with_code, tmp_path)
    assert not list((tmp_path / "target").glob("*.py"))
    assert not code_is_trusted()


def test_trust_travels_with_the_manifest(with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, manifest = tmp_path / "trusted", tmp_path / "manifest.json"
    folder.mkdir()
    import_model(with_code, folder, "bfloat16", trust_remote_code=True)
    monkeypatch.setattr(loading, "_trusted", [])
    for trust in (False, True):
        write_json(manifest, {"files": hash_folder(folder), "trust_remote_code": trust})
        open_checkpoint(folder, manifest)
        assert code_is_trusted() is trust
    assert type(load_model(folder)).__name__ == "OwnForCausalLM"

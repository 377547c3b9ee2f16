"""A patch merged into a GGUF file: what changes in it, what stays, and that llama.cpp computes with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import pytest
import ready_made
import torch
from patches import adapter_of, random_edits
from servers import chat_prompts
from tiny_model import new

from aird.commands.main import main
from aird.models.gguf_file import read_gguf
from aird.models.gguf_import import dequantise_gguf
from aird.models.loading import load_model
from aird.patching.gguf_merge import write_merged_gguf

ATTENTION, MLP = "model.layers.1.self_attn.o_proj", "model.layers.2.mlp.down_proj"
NAMES = {"blk.1.attn_output.weight": ATTENTION, "blk.2.ffn_down.weight": MLP}


@pytest.fixture(scope="module")
def folder(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the decoded weights of a GGUF file, with the file beside them."""
    root = tmp_path_factory.mktemp("gguf")
    ready_made.gguf_file(original, root / "model.gguf", ["Q8_0"])
    decoded = new(root / "decoded")
    dequantise_gguf(root / "model.gguf", decoded, torch.float32)
    return Path(shutil.move(root / "model.gguf", decoded / "model.gguf")).parent


@pytest.fixture(scope="module")
def merged(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("merged")
    patch = adapter_of(random_edits([ATTENTION, MLP], 0.125), root / "adapter")
    write_merged_gguf(patch, folder, read_gguf(folder / "model.gguf"), root / "merged.gguf")
    return root / "merged.gguf"


def test_only_the_edited_matrices_change(folder: Path, merged: Path) -> None:
    before, after = gguf.GGUFReader(folder / "model.gguf"), gguf.GGUFReader(merged)
    said = [
        {name: field.contents() for name, field in each.fields.items() if not name.startswith("GGUF.")}
        for each in (before, after)
    ]
    assert said[0] == said[1] and "tokenizer.ggml.tokens" in said[0]
    edits = {edit.module: edit for edit in random_edits([ATTENTION, MLP], 0.125)}
    for one, other in zip(before.tensors, after.tensors, strict=True):
        assert one.name == other.name
        if one.name not in NAMES:
            assert one.tensor_type == other.tensor_type and (one.data == other.data).all()
            continue
        assert other.tensor_type.name == "F16"
        change = torch.from_numpy(
            gguf.dequantize(other.data, other.tensor_type) - gguf.dequantize(one.data, one.tensor_type)
        )
        torch.testing.assert_close(change, edits[NAMES[one.name]].matrix(), rtol=0.01, atol=2e-3)


def test_the_decoded_merged_file_is_the_patched_model(folder: Path, merged: Path, tmp_path: Path) -> None:
    decoded = new(tmp_path / "decoded")
    dequantise_gguf(merged, decoded, torch.float32)
    patched = load_model(folder, merged.parent / "adapter", dtype=torch.float32)
    prompt = torch.tensor([chat_prompts(folder)[0]])
    with torch.no_grad():
        one, other = (each(prompt).logits for each in (load_model(decoded, dtype=torch.float32), patched))
    torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_the_command_replaces_no_model(
    folder: Path, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--gguf", "--merged", str(merged.parent / "adapter"), "--base", str(folder / "model.gguf")]
    assert main([*command, str(tmp_path / "out.gguf")]) == 0
    assert f"llama-server -m {tmp_path / 'out.gguf'}" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "out.gguf")]) == 2
    assert "exists already and is no exported patch" in capsys.readouterr().err


def test_a_patch_of_another_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    patch = adapter_of(random_edits(["model.layers.1.mlp.up_proj"], 0.125), tmp_path / "adapter")
    with pytest.raises(ValueError, match="is for another model: it adds"):
        write_merged_gguf(patch, folder, read_gguf(folder / "model.gguf"), tmp_path / "merged.gguf")

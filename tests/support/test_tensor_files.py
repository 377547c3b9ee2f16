"""A file of tensors comes back as written, or says that it was damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aird.support.tensor_files import load_tensors, save_tensors

TENSORS = {"unit": torch.eye(3, dtype=torch.float64), "small": torch.arange(4).bfloat16()}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.safetensors"
    save_tensors({**TENSORS, "turned": TENSORS["unit"].T}, path, {"note": "text"})
    tensors, metadata = load_tensors(path)
    assert metadata == {"note": "text"}
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items()
    )
    assert set(load_file(path)) == {"unit", "small", "turned"}  # any reader of safetensors can use it


def test_equal_content_is_an_equal_file(tmp_path: Path) -> None:
    for name in "ab":
        save_tensors(TENSORS, tmp_path / name, {"one": "1", "two": "2", "three": "3"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_changed_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_tensors(TENSORS, path, {"note": "text"})
    content = path.read_bytes()
    for place in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        # A reader may ignore a bit (a space in the header); then everything still is as it was.
        try:
            tensors, metadata = load_tensors(path)
        except ValueError as error:
            assert "file.safetensors cannot be read" in str(error)
        else:
            assert metadata == {"note": "text"} and tensors.keys() == TENSORS.keys()
            assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_a_file_without_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file(TENSORS, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_tensors(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent.safetensors cannot be read"):
        load_tensors(tmp_path / "absent.safetensors")

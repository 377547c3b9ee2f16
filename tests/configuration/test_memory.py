"""What jobs ask memory for, from what is known of a model when they are planned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aird.configuration.memory import weight_megabytes
from aird.settings.sources import ModelSource

HUB = ModelSource(hub="someone/a-model", revision="0" * 40)
WHEEL = ModelSource(wheel="a-wheel==1", file="a.gguf", sha256="0" * 64)


def checkpoint(folder: Path, megabytes: int, dtype: str = "bfloat16") -> Path:
    folder.mkdir(parents=True)
    for part in range(2):
        with open(folder / f"model-{part}.safetensors", "wb") as stream:
            stream.truncate(megabytes * 500_000)
    (folder / "config.json").write_text(json.dumps({"dtype": dtype}), encoding="utf-8")
    return folder


def test_what_nobody_has_seen_has_a_default() -> None:
    assert weight_megabytes(HUB) == 16_000
    assert weight_megabytes(WHEEL) == 1_000
    assert weight_megabytes(HUB, float32=True) == 32_000


def test_the_user_knows_best(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint", 300)
    assert weight_megabytes(HUB, 70.6) == 141_200
    assert weight_megabytes(HUB, 8.0, [folder], float32=True) == 32_000


def test_what_is_there_is_measured(tmp_path: Path) -> None:
    local = ModelSource(path=str(checkpoint(tmp_path / "local", 200)))
    assert weight_megabytes(local) == 200
    assert weight_megabytes(local, float32=True) == 400
    imported = checkpoint(tmp_path / "imported", 300)
    assert weight_megabytes(HUB, imported=[tmp_path / "absent", imported]) == 300
    assert weight_megabytes(local, imported=[imported]) == 300


def test_float32_is_not_widened(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "local", 200, "float32")
    local = ModelSource(path=str(folder))
    assert weight_megabytes(local, float32=True) == 200
    assert weight_megabytes(local, 1.0) == 4_000


def test_a_gguf_file_holds_at_least_four_bits_a_parameter(tmp_path: Path) -> None:
    with open(tmp_path / "a.gguf", "wb") as stream:
        stream.truncate(100_000_000)
    local = ModelSource(path=str(tmp_path / "a.gguf"))
    assert weight_megabytes(local) == 400


@pytest.mark.parametrize("content", ["[]", "{", None])
def test_a_broken_description_is_said_elsewhere(tmp_path: Path, content: str | None) -> None:
    folder = checkpoint(tmp_path / "local", 200)
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content, encoding="utf-8")
    assert weight_megabytes(ModelSource(path=str(folder)), float32=True) == 400

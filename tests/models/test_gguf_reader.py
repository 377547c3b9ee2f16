"""A GGUF file's header is read as the `gguf` package reads it, once, and a damaged one is refused."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from aird.models.gguf_file import read_gguf
from aird.models.gguf_reader import reader_of, shared_header


def written(path: Path, endianess: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE) -> Path:
    """Write a header with every kind of value, without tensors."""
    writer = gguf.GGUFWriter(path, "llama", endianess=endianess)
    writer.add_block_count(2)
    writer.add_token_list(["a", "", "é", "word" * 100])
    writer.add_token_types([1, 2, 3, -4])
    writer.add_token_scores([0.5, -1.0, 2.0, 3.0])
    writer.add_array("flags", [True, False])
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("endianess", gguf.GGUFEndian)
def test_the_header_is_read_as_by_the_package(tmp_path: Path, endianess: gguf.GGUFEndian) -> None:
    path = written(tmp_path / "a.gguf", endianess)
    theirs, ours = gguf.GGUFReader(path), reader_of(path)
    for name, field in theirs.fields.items():
        assert ours.fields[name].contents() == field.contents() and ours.fields[name].types == field.types
    assert list(ours.fields) == list(theirs.fields) and ours.data_offset == theirs.data_offset


def test_it_is_parsed_once_also_through_a_link_and_for_transformers(tmp_path: Path) -> None:
    path, package = written(tmp_path / "a.gguf"), gguf.GGUFReader
    (tmp_path / "link.gguf").symlink_to(path)
    with shared_header():
        assert gguf.GGUFReader(tmp_path / "link.gguf") is reader_of(path)
    assert gguf.GGUFReader is package


@pytest.mark.parametrize("size", [100, 300, 500])
def test_a_truncated_header_is_refused(tmp_path: Path, size: int) -> None:
    path = written(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="a.gguf cannot be read as a GGUF model"):
        read_gguf(path)

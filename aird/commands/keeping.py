"""Whose answers are kept, and where: all that an answer depends on, as far as a command knows it."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from aird.commands.inputs import ModelFolder
from aird.evaluation.engine import Engine
from aird.evaluation.server_process import clean_environment
from aird.support.files import hash_folder

if TYPE_CHECKING:
    from aird.evaluation.kept_answers import KeptAnswers
    from aird.evaluation.questions import Asked
    from aird.evaluation.suite_run import EvaluatedCompletion, Utility

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

PACKAGE = Path(__file__).resolve().parents[1]
WEIGHTS = (".safetensors", ".gguf")  # known by size and times; reading all of them takes as long as loading them
LARGE = 2**26  # bytes; a larger file of another kind is known so too
INSTALLED = """
import importlib.metadata, sys
print(sys.version, sorted({f"{each.name} {each.version}" for each in importlib.metadata.distributions()}))
"""


def kept_or_asked(
    arguments: argparse.Namespace,
    model: ModelFolder,
    adapter: Path | None,
    engine: Engine,
    asked: Asked,
    output: Path,
) -> tuple[list[EvaluatedCompletion], Utility]:
    """Return what `evaluate_suite` does of a model, and keep it; an engine is started where not all of it was kept.

    Args:
        arguments: of the command.
        model, adapter, engine: who is asked, by whom.
        asked: what is asked.
        output: an existing folder, for a server's log and a copy of the model that it may need.
    """
    from aird.evaluation.suite_run import Deployment, Places, evaluate_suite
    from aird.settings.suites import Serving

    serving, who = Serving(), f"{model.name}{f' with {adapter}' if adapter else ''}"
    question = {
        "suite": asked.suite.model_dump(mode="json"),
        "records": asked.records,
        "seed": asked.seed,
        "reference": asked.reference,
        "original": asked.original,
        "serving": serving.model_dump(mode="json"),
    }
    kept = kept_answers(arguments, model, adapter, engine)
    places = Places(output / "served", output / "server.log", None if kept is None else kept.around)

    def measure() -> dict[str, object]:
        completions, utility = evaluate_suite(asked, Deployment(model.folder, adapter, engine, serving), places)
        return {"completions": completions, "utility": utility}

    told = f"All answers of {who} are", f"{who} by {engine.describe()}"
    return kept_or_found(kept, question, told, measure, lambda found: (found["completions"], found["utility"]))


def kept_or_found(
    kept: KeptAnswers | None,
    question: object,
    told: tuple[str, str],
    find: Callable[[], object],
    read: Callable[[Any], Found],
) -> Found:
    """Return what is kept of a question that was asked whole; else find it, and keep it. Print which.

    Args:
        kept: where it may be kept; None keeps nothing.
        question: all that the answer depends on besides whose answers are kept.
        told: what is kept, up to its verb, and who is asked.
        find: asks, and returns what can be written as JSON.
        read: makes what is returned of that.
    """

    def ask() -> object:
        print(f"Asking {told[1]} ...", flush=True)
        return find()

    if kept is None:
        return read(ask())
    return kept.once(question, ask, read, lambda: print(f"{told[0]} kept from before; --fresh asks again.", flush=True))


def kept_answers(
    arguments: argparse.Namespace, model: ModelFolder, adapter: Path | None, engine: Engine
) -> KeptAnswers | None:
    """Return the kept answers of a model by an engine; None where none can be kept.

    A running server is asked always, as nobody knows what it serves. Answers are kept in the user's folder, and those
    of a check that has an `--output` there.

    Args:
        arguments: of the command: `fresh` forgets what was kept before it, and `forgotten` names what it did forget.
        model, adapter: who is asked.
        engine: who answers.
    """
    from aird.evaluation.kept_answers import KeptAnswers, default_folder, usable

    if engine.weights is None:
        return None
    try:
        folders = [default_folder()]
        if arguments.command == "check" and arguments.output is not None:
            folders.insert(0, arguments.output / "answers")
        key = _key(model, adapter, engine)
    except (RuntimeError, OSError) as error:  # RuntimeError: this user has no home
        logger.warning("answers are not kept: %s", error)
        return None
    about = {"model": model.name, "adapter": str(adapter or ""), "engine": engine.describe()}
    kept = KeptAnswers(key, about, [folder for folder in folders if usable(folder)])
    if arguments.fresh and kept.name not in arguments.forgotten:
        kept.forget()
        arguments.forgotten.add(kept.name)  # what is there from now on, this command was answered
    return kept


def _key(model: ModelFolder, adapter: Path | None, engine: Engine) -> dict[str, object]:
    """Return all that an answer depends on, besides its prompt and how long it may be."""
    from aird.models.loading import code_is_trusted, compute_dtype
    from aird.support.gpus import describe_gpus, own_gpus
    from aird.support.processor import processor_name

    pythons = [sys.executable, *([] if engine.environment is None else [engine.interpreter()])]
    return {
        "code": [_code(), _content(Path(inspect.getfile(type(engine))))],  # an engine may be a plug-in from elsewhere
        "installed": [_installed(python) for python in pythons],
        "engine": [engine.title, engine.options.model_dump(mode="json")],
        "model": list(_described(model.source, weights=True)),
        "read_as": [model.form, list(_described(model.folder, weights=False))],
        "chat": None if model.chat is None else model.chat.model_dump(mode="json"),
        "adapter": None if adapter is None else hash_folder(adapter),
        "trusts_code": code_is_trusted(),
        "machine": [processor_name(), describe_gpus(), own_gpus(), str(compute_dtype(model.folder))],
    }


def _described(path: Path, weights: bool) -> Iterator[list[str | int]]:
    """Yield each file's name and what tells it from another one: a hash, or of weights their size and times.

    Args:
        path: a folder or a file.
        weights: count the times of weights. Those that were decoded for this command are new each time, and the same
            for the same source.
    """
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    for file in files:
        found, name = file.stat(), str(file.relative_to(path))
        if file.suffix in WEIGHTS or found.st_size > LARGE:
            # The time of the last change of any kind cannot be set back, as that of the last writing can.
            times = [found.st_mtime_ns, found.st_ctime_ns, found.st_ino] if weights else []
            yield [name, found.st_size, *times]
        else:
            yield [name, _content(file)]


def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def _code() -> str:
    """Return a hash of all code of this package: a release may ask, cut or read an answer in another way."""
    return hashlib.sha256("".join(_content(file) for file in sorted(PACKAGE.rglob("*.py"))).encode()).hexdigest()


@cache
def _installed(python: str) -> str:
    """Return the version of a Python and of all that is installed for it.

    Raises:
        OSError: it does not say so.
    """
    command, environment = [python, "-c", INSTALLED], clean_environment()
    found = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if found.returncode != 0:
        raise OSError(f"{python} does not say what is installed for it: {found.stderr[-200:]}")
    return found.stdout

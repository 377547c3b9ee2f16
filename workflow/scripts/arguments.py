"""How every script begins: the signature of its `main` is its command line, and `run` makes this process a job.

    def main(checkpoint: Path, prompts: list[Path], adapter: Path | None, settings: Directions, seed: int) -> None: ...

takes `--checkpoint`, `--prompts` with any number of paths, perhaps `--adapter`, one JSON string as `--settings`, which
pydantic checks against its type, and `--seed`. A script that a user starts by hand is `call`ed, and is no job.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from aird.support.files import read_json
from aird.support.gpus import take_gpus
from aird.support.lifetime import end_with_run
from aird.support.processor import follow


def run(main: Callable[..., None], model: bool = False) -> None:
    """Make this process a job, and call `main` with its command line.

    Args:
        main: a function of keywords, each with a type.
        model: the job runs a model. It then takes as many GPUs as `--gpus` says, and computes in the types of the
            record `--arithmetic`, where it is given. Any other job sees no GPU.
    """
    parser = _parser(main)
    if model:
        parser.add_argument("--gpus", type=int, default=1)
        parser.add_argument("--arithmetic", type=Path)
    arguments = vars(parser.parse_args())
    gpus, arithmetic = (arguments.pop("gpus"), arguments.pop("arithmetic")) if model else (0, None)
    begin_job(gpus, arithmetic)
    main(**_values(main, arguments))


def call(main: Callable[..., None]) -> None:
    """Call `main` with the command line."""
    main(**_values(main, vars(_parser(main).parse_args())))


def begin_job(gpus: int, arithmetic: Path | None) -> None:
    """Make this process a job: it logs, ends with its run, computes in the recorded types, and sees its own GPUs only.

    Args:
        gpus: how many it takes.
        arithmetic: the record that is followed, if any.
    """
    end_with_run()
    # What a job imports is half a million objects that live until its end. By default the collector goes through them
    # again and again, and once more at the end: 2 of the 7 s that a job of PyTorch and Transformers takes at least.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    # One line per request would bury everything else.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    take_gpus(gpus)
    if arithmetic is not None:
        follow(read_json(arithmetic))


def _parser(main: Callable[..., None]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=sys.modules[main.__module__].__doc__)
    for name, kind in _types(main).items():
        flag = f"--{name.replace('_', '-')}"
        if get_origin(kind) is list:
            parser.add_argument(flag, nargs="*", default=[])
        else:
            parser.add_argument(flag, required=NoneType not in get_args(kind))
    return parser


def _types(main: Callable[..., None]) -> dict[str, Any]:
    types = get_type_hints(main, include_extras=True)
    return {name: types[name] for name in inspect.signature(main).parameters}


def _values(main: Callable[..., None], arguments: dict[str, str]) -> dict[str, object]:
    """Return the command line's texts as values of the types of `main`; `settings` is JSON."""
    adapters = {name: TypeAdapter[object](kind) for name, kind in _types(main).items()}
    return {
        name: adapter.validate_json(arguments[name]) if name == "settings" else adapter.validate_python(arguments[name])
        for name, adapter in adapters.items()
    }

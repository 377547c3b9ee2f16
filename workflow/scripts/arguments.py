"""How every script begins: `parse` reads its command line, `begin_job` makes this process a job of the run.

A command line is named paths, texts, and one JSON string of settings. A script that a user starts by hand parses, and
is no job.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import logging
import sys
from pathlib import Path
from typing import Any

from aird.support.files import read_json
from aird.support.gpus import take_gpus
from aird.support.lifetime import end_with_run
from aird.support.processor import follow


def parse(
    description: str,
    paths: str = "",
    texts: str = "",
    optional: str = "",
    optional_texts: str = "",
    many: str = "",
    gpu: bool = False,
) -> argparse.Namespace:
    """Return the parsed command line of a script.

    Args:
        description: the script's docstring.
        paths: names of required path arguments, separated by spaces.
        texts: names of required text arguments; `settings` is parsed as JSON.
        optional: names of optional path arguments (None where absent).
        optional_texts: names of optional text arguments (None where absent).
        many: names of arguments that take any number of paths.
        gpu: the script runs a model; `begin_job` then takes as many GPUs as `--gpus` says.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.set_defaults(gpu=gpu)
    options: dict[str, dict[str, Any]] = {
        **{name: {"required": True, "type": Path} for name in paths.split()},
        **{name: {"type": Path} for name in optional.split()},
        **{name: {} for name in optional_texts.split()},
        **{name: {"nargs": "*", "type": Path, "default": []} for name in many.split()},
        **{name: {"required": True, "type": json.loads if name == "settings" else str} for name in texts.split()},
    }
    for name, option in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **option)
    parser.add_argument("--gpus", type=int, default=1)
    return parser.parse_args()


def begin_job(arguments: argparse.Namespace) -> None:
    """Make this process a job: it logs, ends with its run, computes in the recorded types, and sees its own GPUs only.

    Args:
        arguments: what `parse` returned. `arithmetic`, where it is there, is the record that is followed.
    """
    end_with_run()
    # What a job imports is half a million objects that live until its end. By default the collector goes through them
    # again and again, and once more at the end: 2 of the 7 s that a job of PyTorch and Transformers takes at least.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    # One line per request would bury everything else.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    take_gpus(arguments.gpus if arguments.gpu else 0)
    if getattr(arguments, "arithmetic", None):
        follow(read_json(arguments.arithmetic))

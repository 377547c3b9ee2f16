"""The command line that all scripts share: named paths, one JSON string of settings, a log."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from aird.support.files import read_json
from aird.support.gpus import take_gpu
from aird.support.lifetime import end_with_run
from aird.support.processor import follow


def parse(
    description: str, paths: str = "", texts: str = "", optional: str = "", many: str = "", gpu: bool = False
) -> argparse.Namespace:
    """Return the parsed command line of a script.

    Args:
        description: the script's docstring.
        paths: names of required path arguments, separated by spaces; the record `arithmetic` is followed at once.
        texts: names of required text arguments; `settings` is parsed as JSON.
        optional: names of optional path arguments (None where absent).
        many: names of arguments that take any number of paths.
        gpu: the script runs a model, so it takes a GPU of its own where there are several.
    """
    end_with_run()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    # One line per request would bury everything else.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=description)
    for name in paths.split():
        parser.add_argument(f"--{name.replace('_', '-')}", required=True, type=Path)
    for name in optional.split():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path)
    for name in many.split():
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="*", type=Path, default=[])
    for name in texts.split():
        parser.add_argument(
            f"--{name.replace('_', '-')}", required=True, type=json.loads if name == "settings" else str
        )
    arguments = parser.parse_args()
    if gpu:
        take_gpu()
    if "arithmetic" in paths.split():
        follow(read_json(arguments.arithmetic))
    return arguments

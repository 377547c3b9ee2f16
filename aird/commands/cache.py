"""`aird cache`: show and empty the answers that commands keep."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import time
from pathlib import Path

from aird.evaluation.kept_answers import default_folder, kept_below
from aird.support.files import read_json

SUMMARY = "show and empty the answers that commands keep"
DESCRIPTION = """\
`aird check` and `aird evaluate` keep answers as they come. An interrupted command, given again, goes on where it was,
and nothing is asked twice: a second check of one original asks the other model alone. The key of an answer is its
prompt in tokens and all that it depends on: the model's files, patch, engine, versions, arithmetic type, and the code
of this package.
Answers of harmful prompts can be harmful text; the folder is for its user alone."""
EPILOG = """\
examples:
  aird cache             where they are, of whom, and how much room they take
  aird cache --empty     remove them all
  AIRD_CACHE=/scratch/me aird check original compressed    (keep them elsewhere)
  aird check original compressed --fresh                        (ask all anew)

A model that is changed in any way is another one: its earlier answers stay until the folder is emptied. A running
server (--url) is asked always, as nobody knows what it serves.

common errors:
  "answers are not kept": the folder cannot be written, or others can write there; name another one by AIRD_CACHE"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--empty", action="store_true", help="remove all answers that are kept there")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    folder = default_folder()
    kept = kept_below(folder)
    size = sum(path.stat().st_size for each in kept for path in each.iterdir())
    print(f"{folder}: answers of {len(kept)} models, {size / 1e6:.1f} MB")
    for each in kept:
        with contextlib.suppress(OSError, ValueError, KeyError):
            print(f"  {_describe(each)}")
    if arguments.empty:
        for each in kept:
            shutil.rmtree(each)
        print("All were removed.")


def _describe(folder: Path) -> str:
    """Return whose answers a folder holds, by whom, to how many requests, and since when."""
    said = read_json(folder / "about.json")
    patched = f" with {said['adapter']}" if said["adapter"] else ""
    count = sum(file.read_bytes().count(b"\n") for file in folder.glob("answers-*.jsonl"))
    since = time.strftime("%Y-%m-%d", time.localtime((folder / "about.json").stat().st_mtime))
    return f"{since}  {said['model']}{patched} by {said['engine']}: {count} requests"

"""Loader for the everyday_choices task (lm-eval `custom_dataset` hook).

lm-eval calls it with the task's `metadata` and `dataset_kwargs` as keyword
arguments. The data files are found relative to this file, never to the current
directory, and are read without the network or the datasets cache.
"""

import json
from pathlib import Path

from datasets import Dataset, DatasetDict

HERE = Path(__file__).resolve().parent


def load_questions(data_files: dict[str, str], **_ignored) -> DatasetDict:
    """Read {split: JSON-lines file}; the other keyword arguments are metadata."""
    splits = {}
    for split, name in data_files.items():
        with (HERE / name).open(encoding="utf-8") as lines:
            splits[split] = Dataset.from_list([json.loads(line) for line in lines if line.strip()])
    return DatasetDict(splits)

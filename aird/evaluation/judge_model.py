"""The model of a classifier, fetched once: apart from how it is asked, so that a change there fetches nothing again."""

from __future__ import annotations

from pathlib import Path

from aird.models.loading import check_weights, copy_weights


def import_judge(source: Path, target: Path) -> None:
    """Copy a model folder in Hugging Face format as a checkpoint that is only served: no structure is asked of it.

    Raises:
        ValueError: `source` is no such folder, or a weight is missing, truncated, NaN or infinite.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is no folder: a judge needs a model in Hugging Face format")
    copy_weights(source, target, with_code=False)
    check_weights(target, source)

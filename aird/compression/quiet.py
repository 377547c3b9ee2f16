"""Keep the compression libraries' progress bars and chatter out of a rule's log."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

log = logging.getLogger(__name__)

# Said of every recipe without calibration, and on every machine without a GPU.
_EXPECTED_WARNINGS = (
    "without calibration data",
    "No accelerator available",
    "Disabling tokenizer parallelism",
)
_KEPT_LEVELS = ("WARNING", "ERROR", "CRITICAL")


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Disable every tqdm bar, also of callers that turn theirs on explicitly."""
    from tqdm import tqdm

    make_bar = tqdm.__init__

    def make_without_bar(bar: Any, *arguments: Any, **options: Any) -> None:
        make_bar(bar, *arguments, **{**options, "disable": True})

    with mock.patch.object(tqdm, "__init__", make_without_bar):
        yield


@contextlib.contextmanager
def only_warnings() -> Iterator[list[str]]:
    """Silence llm-compressor but for its warnings, which go to `logging`; yield the list of them."""
    # Importing llm-compressor adds a handler to loguru, and already logs.
    with mock.patch.dict(os.environ, LLM_COMPRESSOR_LOG_LEVEL="CRITICAL"):
        import llmcompressor  # noqa: F401
    from loguru import logger

    texts: list[str] = []

    def keep(message: Any) -> None:
        text = str(message).strip()
        if not any(expected in text for expected in _EXPECTED_WARNINGS):
            texts.append(text)
            log.warning("%s", text)

    logger.remove()
    # Filtered by name, because its level "METRIC", a line per matrix, ranks above warnings.
    handler = logger.add(keep, format="{message}", filter=lambda record: record["level"].name in _KEPT_LEVELS)
    try:
        with without_progress_bars(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
            yield texts
    finally:
        logger.remove(handler)

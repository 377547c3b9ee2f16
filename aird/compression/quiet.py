"""Keep llm-compressor's chatter out of a rule's log, and hand on its warnings.

It logs through loguru, a line per matrix. Progress bars are no matter of this module: the rules switch them off for
every job (TQDM_DISABLE in workflow/planning.py).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

log = logging.getLogger(__name__)

# Said of every recipe without calibration, and on every machine without a GPU.
_EXPECTED_WARNINGS = (
    "without calibration data",
    "No accelerator available",
    "Disabling tokenizer parallelism",
)
_KEPT_LEVELS = ("WARNING", "ERROR", "CRITICAL")


@contextlib.contextmanager
def only_warnings() -> Iterator[list[str]]:
    """Silence llm-compressor but for its warnings, which go to `logging`; yield the list of them."""
    import llmcompressor  # noqa: F401  # adds a handler to loguru, which the next lines replace
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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
            yield texts
    finally:
        logger.remove(handler)

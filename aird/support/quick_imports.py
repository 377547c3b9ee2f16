"""Import Transformers without scikit-learn: a third less time, in every job that loads a model or a tokenizer.

lm-eval brings scikit-learn. Where Transformers finds it, it imports it with its generation module, for assisted
decoding, which nothing here does.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

UNUSED = "sklearn"


def import_transformers() -> Any:
    """Return the module `transformers`; others may import scikit-learn afterwards as ever."""
    if UNUSED not in sys.modules:
        sys.modules[UNUSED] = None  # type: ignore[assignment]  # None makes Python say that there is no such module
        try:
            import_module("transformers.generation.candidate_generator")
        finally:
            del sys.modules[UNUSED]
    return import_module("transformers")

"""The texts beside figures and tables: the same files that Snakemake's own report shows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from docutils.core import publish_parts
from jinja2 import Environment, StrictUndefined


class Captions:
    """Captions in reStructuredText with Jinja, as HTML."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._texts = {path.stem: path.read_text(encoding="utf-8") for path in files}

    def __call__(self, name: str, **wildcards: str) -> str:
        """Return a caption as HTML.

        Args:
            name: of its file, without the ending.
            wildcards: what the caption reads as `snakemake.wildcards`.

        Raises:
            KeyError: there is no such file.
        """
        snakemake = SimpleNamespace(wildcards=SimpleNamespace(**wildcards))
        text = Environment(undefined=StrictUndefined).from_string(self._texts[name]).render(snakemake=snakemake)
        # Warnings are errors: a mistake in a caption must not end up in the page.
        settings = {"halt_level": 2, "report_level": 5, "initial_header_level": 3}
        return str(publish_parts(text, writer="html5", settings_overrides=settings)["body"])

    def table(self, name: str) -> str:
        """Return the caption of a table: its own, or the one that all others share."""
        own = f"{name}_table"
        return self(own if own in self._texts else "other_table")

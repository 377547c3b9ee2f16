"""What is read from the metadata of a model card: the YAML at its start, as the hub has it."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import metadata_load

from aird.support.checkpoint_patterns import CARD


def read_licence(folder: Path) -> str | None:
    """Return the licence that a model's own card names; None where it has no card, or one without."""
    card = folder / CARD
    try:
        metadata = metadata_load(card) if card.is_file() else None
    except (ValueError, yaml.YAMLError):
        return None  # not the hub's form: its author has to say the licence elsewhere
    licence = (metadata or {}).get("license")
    return licence if isinstance(licence, str) else None

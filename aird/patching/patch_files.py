"""Write what a patch leaves behind: the adapter folder with its model card, and the record beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aird.patching.adapters import load_adapter, merge, save_adapter
from aird.patching.baseline_card import baseline_card
from aird.patching.card_metadata import CARD
from aird.patching.edits import Edit
from aird.patching.model_card import patch_card
from aird.settings.patches import LoRA, SystemPrompt
from aird.support.files import atomic_folder, hash_folder, write_json


def write_patch(
    edits: Sequence[Edit],
    record: dict[str, Any],
    folder: Path,
    statistics: Path,
    base: str,
    licence: str | None = None,
) -> None:
    """Write the adapter folder of a patch, and beside it `record` with the adapter's size and hashes.

    Args:
        edits: at least one edit.
        record: what else to say about the patch (`patch_record`).
        folder: the adapter folder; it appears when complete.
        statistics: the JSON file for the record.
        base: name of the base checkpoint.
        licence: the base's licence, if it is known.
    """
    _write(
        lambda made: save_adapter(edits, made, base),
        lambda full: patch_card(full, base, licence),
        {**record, "base": base, "licence": licence},
        folder,
        statistics,
    )


def write_baseline(
    settings: LoRA | SystemPrompt,
    save: Callable[[Path], dict[str, Any]],
    folder: Path,
    statistics: Path,
    base: str,
    licence: str | None = None,
) -> None:
    """Write the folder of a baseline with its model card, and its record beside it.

    Args:
        settings: the baseline.
        save: writes its files into a folder, and returns what else to say about it.
        folder: the patch's folder; it appears when complete.
        statistics: the JSON file for the record.
        base: name of the base checkpoint.
        licence: the base's licence, if it is known.
    """
    record: dict[str, Any] = {
        "blocks": [],
        "edits": [],
        "direction": None,
        "settings": settings.model_dump(exclude={"compressions"}),
        "base": base,
        "licence": licence,
    }
    _write(
        lambda made: record.update(save(made)),
        lambda _: baseline_card(settings, base, licence),
        record,
        folder,
        statistics,
    )


def _write(
    save: Callable[[Path], None],
    card: Callable[[dict[str, Any]], str],
    record: dict[str, Any],
    folder: Path,
    statistics: Path,
) -> None:
    with atomic_folder(folder) as temporary:
        save(temporary)
        weights = hash_folder(temporary)
        size = sum((temporary / name).stat().st_size for name in weights)
        record["weights"] = weights
        (temporary / CARD).write_text(card(record), encoding="utf-8")
    write_json(statistics, {**record, "adapter_bytes": size, "files": hash_folder(folder)})


def write_merged(base: Path, adapter: Path, record: dict[str, Any], folder: Path) -> dict[str, float]:
    """Write a checkpoint with an adapter merged in, and its model card.

    Args:
        base: the compressed checkpoint.
        adapter: the adapter folder.
        record: what `write_patch` wrote beside it.
        folder: the merged checkpoint; it appears when complete.

    Returns:
        {module: share of the matrix's zeros that the edit filled}.
    """
    with atomic_folder(folder) as temporary:
        filled = merge(base, load_adapter(adapter), temporary)
        card = patch_card(record, record["base"], record["licence"], merged=True)
        (temporary / CARD).write_text(card, encoding="utf-8")
    return filled

"""Make a patch and write what it leaves behind: its folder with the model card, and the record beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aird.models.loading import attention, load_tokenizer
from aird.patching.adapters import load_adapter, merge
from aird.patching.method import PatchInputs
from aird.patching.methods import method_of, needs_of
from aird.patching.model_card import patch_card
from aird.prompts.chat import renders_alike
from aird.settings.patches import PatchSettings
from aird.support.checkpoint_patterns import CARD
from aird.support.files import atomic_folder, hash_folder, read_json, write_json


def make_patch(
    settings: PatchSettings,
    inputs: PatchInputs,
    folder: Path,
    statistics: Path,
    licence: str | None = None,
    provenance: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Make a patch by its method, and write its folder with the model card, and its record beside it.

    Args:
        settings, inputs: the patch, and what its method asks for.
        folder: the patch's folder; it appears when complete.
        statistics: the JSON file for the record: settings, what the edits change, size and SHA-256 of the files.
        licence: the base's licence, if it is known.
        provenance: what else to write into the record.

    Raises:
        ValueError: an input is missing, or the method cannot be applied to this model.
    """
    values = settings.model_dump(exclude={"compressions"})
    missing = [name for name in sorted(needs_of(settings) - {"arithmetic", "replies"}) if getattr(inputs, name) is None]
    if missing:
        raise ValueError(f"method {values['method']} needs what was not given: {', '.join(missing)}")
    if {"original", "compressed", "prompts"} <= needs_of(settings):
        tokenizers = (load_tokenizer(place) for place in (inputs.original, inputs.compressed))
        if not renders_alike(*tokenizers):
            raise ValueError(
                "the compressed checkpoint renders prompts otherwise than the original (its chat template or "
                f"tokenizer), and method {values['method']} would learn from one for the other; give it the original's "
                "chat template, or make a patch without prompts (scale, project)"
            )
    record: dict[str, object] = {"blocks": [], "edits": [], "direction": None, "settings": values}
    record |= {"base": inputs.base, "licence": licence, **(provenance or {})}
    with atomic_folder(folder) as temporary:
        record |= method_of(settings).make(settings, inputs, temporary)
        if inputs.revision is not None:
            record["revision"] = inputs.revision
            _pin_base(temporary / "adapter_config.json", inputs.revision)
        weights = record["weights"] = hash_folder(temporary)
        if inputs.compressed is not None and (needed := attention(inputs.compressed)) is not None:
            record["attention"] = needed
        record["adapter_bytes"] = sum((temporary / name).stat().st_size for name in weights)
        (temporary / CARD).write_text(patch_card(record, inputs.base, licence), encoding="utf-8")
    record["files"] = hash_folder(folder)
    write_json(statistics, record)
    return record


def _pin_base(configuration: Path, revision: str) -> None:
    """Name the base's commit where PEFT looks for it; a patch that is no adapter has no such file."""
    if configuration.is_file():
        write_json(configuration, {**read_json(configuration), "revision": revision})


def write_merged(base: Path, adapter: Path, record: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Write a checkpoint with an adapter merged in, and its model card.

    The folder appears when it is complete; `record` is what `make_patch` wrote beside the adapter.

    Returns:
        {module: share of the matrix's zeros that the edit filled}.
    """
    with atomic_folder(folder) as temporary:
        filled = merge(base, load_adapter(adapter), temporary)
        card = patch_card(record, record["base"], record["licence"], merged=True)
        (temporary / CARD).write_text(card, encoding="utf-8")
    return filled

"""Records of prompt sets, and which of them a node uses: drawn by split, count and seed.

A record is {"id", "instruction", "origin", "split"}; `origin` names the set that the instruction was first read in.
aird/prompts/building.py makes the sets; every later stage selects from them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from aird.settings.base import PromptSelection

Record = dict[str, Any]
CLASSES = ("harmful", "harmless")  # the two classes of instructions; results name them so
ATTACKED = "attacked"  # the kind of a completion of an attacked prompt; the others are the classes


def select(records: Sequence[Record], selection: PromptSelection, seed: int) -> list[Record]:
    """Return the records that a selection names, in the set's order.

    Raises:
        ValueError: the split does not exist or holds fewer records than asked for.
    """
    chosen = [record for record in records if selection.split is None or record["split"] == selection.split]
    label = selection.set + (f", split {selection.split}" if selection.split else "")
    if not chosen:
        splits = sorted({record["split"] for record in records if record["split"]})
        raise ValueError(f"prompt set {label}: no record (splits: {', '.join(splits) or 'none'})")
    if selection.count is None:
        return chosen
    if selection.count > len(chosen):
        raise ValueError(f"prompt set {label}: {selection.count} records asked for, but it has {len(chosen)}")
    positions = sorted(random.Random(seed).sample(range(len(chosen)), selection.count))
    return [chosen[position] for position in positions]


def select_instructions(records: Sequence[Record], selection: PromptSelection, seed: int) -> list[str]:
    """Return the texts of the records that `select` returns."""
    return [record["instruction"] for record in select(records, selection, seed)]

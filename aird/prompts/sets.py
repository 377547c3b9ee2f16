"""Prompt sets: read, clean, split, and keep apart what must not overlap.

A record of a set is {"id", "instruction", "origin", "split"}; `origin` names the
set that the instruction was first read in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from aird.settings.base import PromptSelection
from aird.settings.prompts import PromptSet

Record = dict[str, Any]

# Two instructions are near-duplicates if they share this part of their distinct words. AdvBench
# and HarmBench hold rewordings of one another that differ in a word or two.
NEAR_DUPLICATE_OVERLAP = 0.7


def build_set(
    name: str, settings: PromptSet, rows: Sequence[Record], apart_from: Sequence[Record], seed: int
) -> tuple[list[Record], dict[str, int]]:
    """Return the records of a set and the numbers of what was dropped.

    A published benchmark is kept whole but for repeated instructions; only where splits are drawn
    do near-duplicates go, since one of a pair could be trained on and the other measured.

    Args:
        name: the set's name, from which ids are made.
        settings: splits to draw.
        rows: records with at least instruction, origin and split, in order.
        apart_from: records of the sets that this one must be disjoint from.
        seed: decides which instruction falls into which drawn split.

    Raises:
        ValueError: nothing is left, or less than the splits ask for.
    """
    kept: list[Record] = []
    index = NearDuplicates()
    exact: set[str] = set()
    foreign = NearDuplicates()
    for record in apart_from:
        foreign.add(record["instruction"])
    dropped = {"duplicates": 0, "overlapping": 0}
    for row in rows:
        if foreign.holds(row["instruction"]):
            dropped["overlapping"] += 1
        elif row["instruction"] in exact or (settings.splits and index.holds(row["instruction"])):
            dropped["duplicates"] += 1
        else:
            index.add(row["instruction"])
            exact.add(row["instruction"])
            kept.append({**row, "id": f"{name}-{len(kept) + 1:04d}"})
    if not kept:
        raise ValueError(f"prompt set {name}: no instruction is left after dropping {dropped}")
    if settings.splits:
        wanted = sum(settings.splits.values())
        if wanted > len(kept):
            raise ValueError(f"prompt set {name}: its splits ask for {wanted} instructions, but it has {len(kept)}")
        order = random.Random(seed).sample(range(len(kept)), wanted)
        chosen = iter(order)
        assigned = {next(chosen): split for split, size in settings.splits.items() for _ in range(size)}
        kept = [{**record, "split": assigned.get(position)} for position, record in enumerate(kept)]
    return kept, dropped


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


class NearDuplicates:
    """An index of texts that finds those sharing most of their distinct words with a new one."""

    def __init__(self) -> None:
        self._texts: list[frozenset[str]] = []
        self._by_word: dict[str, list[int]] = {}

    def add(self, text: str) -> None:
        """Remember a text."""
        words = _words(text)
        for word in words:
            self._by_word.setdefault(word, []).append(len(self._texts))
        self._texts.append(words)

    def holds(self, text: str) -> bool:
        """Tell whether a remembered text has the same words, or nearly (Jaccard index)."""
        words = _words(text)
        shared: dict[int, int] = {}
        for word in words:
            for position in self._by_word.get(word, ()):
                shared[position] = shared.get(position, 0) + 1
        return any(
            count >= NEAR_DUPLICATE_OVERLAP * len(words | self._texts[position]) for position, count in shared.items()
        )


def _words(text: str) -> frozenset[str]:
    # An instruction in another script, or of signs alone, is compared as a whole.
    return frozenset(re.findall(r"\w+", text.lower())) or frozenset([text])

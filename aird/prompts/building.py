"""Build prompt sets: read, clean, split, and keep apart what must not overlap.

`build_prompt_set` is the node; aird/prompts/sets.py says what a record is, and selects from a set.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from aird.prompts.sets import Record
from aird.prompts.sources import open_file
from aird.settings.prompt_files import read_instructions
from aird.settings.prompts import PromptSet

# Two instructions are near-duplicates if they share this part of their distinct words. AdvBench
# and HarmBench hold rewordings of one another that differ in a word or two.
NEAR_DUPLICATE_OVERLAP = 0.7


def build_prompt_set(
    name: str, settings: PromptSet, combined: Sequence[Record], apart_from: Sequence[Record], seed: int
) -> tuple[list[Record], dict[str, int]]:
    """Read a set's source, or join other sets, and return what `build_set` makes of it.

    Args:
        name: the set's name.
        settings: its source or `combine`, and its splits.
        combined: records of the sets that `combine` names, in order; empty where there is a source.
        apart_from: records of the sets that this one must be disjoint from.
        seed: decides which instruction falls into which drawn split.

    Raises:
        SourceError: the source cannot be fetched, or holds other bytes than the pinned ones.
        ValueError: the source cannot be read, or holds too little.
    """
    if settings.source is None:
        rows = list(combined)
    else:
        with open_file(settings.source) as path:
            instructions = read_instructions(path, settings)
        rows = [{"instruction": text, "origin": name, "split": split} for text, split in instructions]
    return build_set(name, settings, rows, apart_from, seed)


def build_with_parts(prompt_sets: Mapping[str, PromptSet], name: str, seed: int) -> list[Record]:
    """Return a set's records, after building the sets that it joins or must not overlap.

    Args:
        prompt_sets: all sets by name.
        name: the one to build.
        seed: decides which instruction falls into which drawn split.

    Raises:
        SourceError, ValueError: as `build_prompt_set`.
    """
    settings = prompt_sets[name]
    combined, apart_from = (
        [record for part in parts for record in build_with_parts(prompt_sets, part, seed)]
        for parts in (settings.combine or [], settings.disjoint_from)
    )
    return build_prompt_set(name, settings, combined, apart_from, seed)[0]


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
            without = f" without {dropped['duplicates']} near-duplicates" if dropped["duplicates"] else ""
            raise ValueError(
                f"prompt set {name}: its splits ask for {wanted} instructions, but it has {len(kept)}{without}"
            )
        order = random.Random(seed).sample(range(len(kept)), wanted)
        chosen = iter(order)
        # By name: the workflow passes settings with sorted keys, and a command in the configuration's order.
        assigned = {next(chosen): split for split, size in sorted(settings.splits.items()) for _ in range(size)}
        kept = [{**record, "split": assigned.get(position)} for position, record in enumerate(kept)]
    return kept, dropped


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

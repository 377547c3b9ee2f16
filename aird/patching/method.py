"""What every patch method says of itself, and what it may ask for. The methods stand in aird/patching/methods/."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aird.patching.records import PatchRecord
from aird.prompts.sets import Record, select_instructions
from aird.settings.base import PromptSelection
from aird.settings.directions import Directions
from aird.settings.patches import PatchSettings, Replies

Need = Literal["original", "compressed", "direction", "own", "prompts", "replies", "arithmetic", "attacks"]
# Of a strength that is chosen: the checkpoint runs, and the original's replies are what it is compared with.
TO_CHOOSE: frozenset[Need] = frozenset({"original", "compressed", "prompts", "replies", "arithmetic"})
DirectionFiles = tuple[Path, Path]  # direction.safetensors, direction.json
ABSENT: Any = None


@dataclass(frozen=True)
class PatchInputs:
    """What a patch is made from. What it does not need (`needs_of`) is absent, None.

    Attributes:
        base: name of the compressed checkpoint, for the adapter's record and the card.
        original, compressed: checkpoint folders.
        direction: files of the original's refusal direction.
        own: files of the compressed checkpoint's own direction.
        prompts: "harmful" and "harmless" to prompt records with `split` and `instruction`.
        sizes: how many prompts and tokens, as `Method.sizes` says.
        seed: of the draw and of the order of prompts.
        replies: the file with the original's replies; without it, the original is asked.
        attacks: names of the attacks that are learnt from to their settings, as a configuration has them, and texts.
        revision: the commit of a base on the hub; None of any other.
    """

    base: str
    original: Path = ABSENT
    compressed: Path = ABSENT
    direction: DirectionFiles = ABSENT
    own: DirectionFiles = ABSENT
    prompts: Mapping[str, Sequence[Record]] = ABSENT
    sizes: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    replies: Path | None = None
    attacks: Mapping[str, tuple[Mapping[str, Any], str]] = ABSENT
    revision: str | None = None

    def instructions(self, kind: str) -> list[str]:
        """Return as many training instructions of a kind as `sizes["train"]` says, drawn with the seed."""
        selection = PromptSelection(set=kind, split="train", count=self.sizes["train"])
        return select_instructions(self.prompts[kind], selection, self.seed)

    def replies_sizes(self) -> Replies:
        """Return how many replies there are, for a calibration and for a choice of strength."""
        return Replies.model_validate({name: self.sizes[name] for name in Replies().sizes})


@dataclass(frozen=True)
class Method:
    """One way to make a patch.

    Attributes:
        settings: the model of its settings; its field `method` is a literal with the method's name.
        summary: what it does, for the model card and for `aird patch --help`.
        make: writes the patch's files into an empty folder, and returns what there is to say about them.
        needs: what it is made from, besides what single settings ask for (`needs_of`). With `prompts` it runs models;
            with `arithmetic` they compute in the types that were measured on this machine.
        sizes: returns how many prompts and tokens it sees. The patch depends on these numbers of the configuration.
        trains_on: of the training prompts that it sees beside those with the original's replies, the kind to the key of
            `replies` that says how many.
        usage: of what is no reading of AIRD, the text of its card that says how to use it, where {loading} stands for
            how adapters are loaded; None for AIRD's own patches.
        title: what the report calls such a patch, beside its name; None: its name alone.
        trained: whether it learns its rows, so that a control is one that is trained alike.
        default: whether it is the one to take, of those that learn from prompts, or of those that need none.
        adapter: whether the files are a LoRA adapter, which can be merged.
        baseline: whether it is for comparisons alone, which the workflow makes; `aird patch` offers all others.
        compensates: whether its record says how the error of each matrix lies (`compensation`), which a table shows.
        memory_mb, minutes: what a job asks for.
    """

    settings: type[PatchSettings]
    summary: str
    make: Callable[[Any, PatchInputs, Path], PatchRecord]
    needs: frozenset[Need] = frozenset()
    sizes: Callable[[Directions, Replies], dict[str, int]] = lambda directions, replies: {}
    trains_on: Mapping[str, str] = field(default_factory=dict)
    usage: str | None = None
    title: str | None = None
    trained: bool = False
    default: bool = False
    adapter: bool = True
    baseline: bool = False
    compensates: bool = False
    memory_mb: int = 3000
    minutes: int = 30

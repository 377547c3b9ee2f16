"""The repair of a check: a calibrated patch, learnt from prompts that the check does not measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from aird.commands import patch
from aird.commands.inputs import ModelFolder
from aird.prompts import embedded
from aird.prompts.building import build_prompt_set, build_set, build_with_parts
from aird.prompts.sets import CLASSES, Record, select
from aird.settings.base import PromptSelection
from aird.settings.directions import Directions
from aird.settings.patches import Replies
from aird.settings.prompts import PromptSet

REPLIES = Replies()  # what a repair learns from and is chosen by: as many prompts as in the workflow


def prompts_to_learn(measured: Mapping[str, Sequence[Record]], seed: int) -> dict[str, list[Record]]:
    """Return what a repair learns from: prompts that are disjoint from the measured ones, whoever brought these.

    Raises:
        ValueError: too few are left.
    """
    sets = {name: PromptSet.model_validate(values) for name, values in embedded.PROMPT_SETS.items()}
    prompts = {}
    for kind in CLASSES:
        known = build_with_parts(sets, embedded.LEARNT[kind], seed)
        sizes = {"train": getattr(REPLIES, f"train_{kind}"), "validation": REPLIES.validation}
        try:
            if kind == "harmful":
                apart = PromptSet(combine=[kind], splits=sizes)
                prompts[kind], _ = build_prompt_set(kind, apart, known, measured[kind], seed)
            else:  # these have their own splits
                prompts[kind], _ = build_set(kind, PromptSet(combine=[kind]), known, measured[kind], seed)
                for split, count in sizes.items():
                    select(prompts[kind], PromptSelection(set=kind, split=split, count=count), seed)
        except ValueError as error:
            raise ValueError(
                f"--repair learns from prompts that are not measured, and too few are left: {error}; measure with "
                f"other {kind} prompts"
            ) from error
    return prompts


def repair(
    original: ModelFolder, compressed: ModelFolder, prompts: dict[str, list[Record]], output: Path, seed: int
) -> None:
    """Write a calibrated patch, learnt from these prompts."""
    settings = patch.METHODS[patch.WITH_PROMPTS].settings()
    sizes = {"train": REPLIES.train_harmful, "validation": REPLIES.validation // 2}  # as in the workflow
    directions = Directions.model_validate({**{kind: kind for kind in CLASSES}, **sizes})
    patch.write_patch(original, compressed, settings, prompts, directions, REPLIES, seed, output)

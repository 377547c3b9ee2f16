"""What a check says of itself: who was asked what, by whom, in which form."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from aird import __version__
from aird.commands.check_sides import Answered
from aird.commands.inputs import ModelFolder
from aird.evaluation.kind_of_loss import KindOfLoss
from aird.prompts.sets import Record
from aird.settings.models import Chat
from aird.settings.suites import Suite
from aird.support.files import sha256_of

JUDGE = "refusal phrases of Arditi et al. (arXiv 2406.11717), their published list"


def facts_of(
    arguments: argparse.Namespace,
    prompts: Mapping[str, Sequence[Record]],
    suite: Suite,
    before: Answered,
    after: Answered,
    loss: KindOfLoss | None,
    patch: Path | None,
) -> dict[str, str]:
    """Return what was measured and how, name to text.

    Args:
        arguments: of the command.
        prompts, suite: what was asked.
        before, after: what the original and the compressed model answered.
        loss: what kind of loss their labels show.
        patch: the patch on the compressed model.
    """
    sides = {"original": before, "compressed": after}
    told: dict[str, str | None] = {}
    for word, answered in sides.items():
        name, commit = answered.side.told
        told[word] = name + (f" with {arguments.patch}" if answered is after and arguments.patch else "")
        told[f"{word} commit"] = commit
        told[f"{word} measured as"] = answered.measured_as
        told[f"{word} patched by"] = (answered.side.provenance or {}).get("adapter")
    chats = [chat for each in sides.values() if (chat := each.side.chat) is not None and chat != Chat()]
    facts = {name: text for name, text in told.items() if text}
    if chats:
        facts["chat settings"] = chats[0].in_words()
    if loss is not None:
        facts |= loss.facts()
    thought = ", a thought included" if suite.think else ""
    return {
        **facts,
        **_same_fact(arguments.original, arguments.compressed),
        "prompts": ", ".join(f"{len(records)} {kind}" for kind, records in prompts.items()),
        "answers": f"greedy, at most {suite.maximum_new_tokens} tokens{thought}",
        "answered by": _answered_by((before.engine, before.answered_by), (after.engine, after.answered_by)),
        **({} if after.served_as is None else {"patch served as": after.served_as}),
        "judge": JUDGE,
        "seed": str(arguments.seed),
        **_patch_facts(patch, after.side.model),
        **circumstances(arguments.called),
    }


def circumstances(called: str) -> dict[str, str]:
    """Return how it was called, the version, when it ran, and on which machine."""
    from aird.support.gpus import gpu_names
    from aird.support.processor import processor_name

    cores, memory = len(psutil.Process().cpu_affinity() or [1]), psutil.virtual_memory().total / 1e9
    machine = [f"{processor_name()}, {cores} cores, {memory:.0f} GB, {platform.system()}", *gpu_names()]
    return {
        "command": called,
        "version": f"aird {__version__}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": ", ".join(machine),
    }


def _same_fact(original: str, compressed: str) -> dict[str, str]:
    """Return what is to say where one model is compared with itself."""
    paths = [Path(text).expanduser() for text in (original, compressed)]
    if original != compressed and not (all(path.exists() for path in paths) and paths[0].samefile(paths[1])):
        return {}
    return {"one model": f"{original} is named twice: this compares a model with itself"}


def _answered_by(original: tuple[str, str], compressed: tuple[str, str]) -> str:
    """Return who answered in words, and of two engines what their difference means.

    Args:
        original, compressed: what the engine of each is called in records, and who it is.
    """
    (first, told), (second, other) = original, compressed
    said = told if told == other else f"{told} and {other}"
    if first == second:
        return said
    may = "is" if first and second else "may be"  # stored completions without a name may be by the same engine
    return f"{said}: the change {may} that of the engine and of the compression at once"


def _patch_facts(adapter: Path | None, model: ModelFolder | None) -> dict[str, str]:
    """Return which patch (SHA-256) on which model (folder or hub id) a verdict is about; `aird push` compares both."""
    if adapter is None or model is None:
        return {}
    return {"patch": sha256_of(adapter / "adapter_model.safetensors"), "patched model": model.base}

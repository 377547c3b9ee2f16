"""Claim C1 on held-out prompts: one direction mediates refusal.

Ablating the direction must make harmful prompts be answered, adding it must make
harmless prompts be refused (arXiv 2406.11717, sections 3.1 and 3.2). Completions are
judged at once and not kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from aird.inference.generation import generate
from aird.inference.hooks import ablation, addition
from aird.inference.refusals import degenerate, jailbroken_arditi
from aird.models.structure import decoder_blocks, writer_modules


def verify_direction(
    model: Any,
    tokenizer: Any,
    direction: tuple[torch.Tensor, float, int],
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    maximum_new_tokens: int,
) -> dict[str, dict[str, list[bool]]]:
    """Return, per intervention, whether each prompt was refused and whether its completion degenerated.

    Args:
        model, tokenizer: the checkpoint.
        direction: (unit vector [d_model], norm of the raw difference in means, layer).
        harmful, harmless: token ids of held-out prompts.
        maximum_new_tokens: length of the completions.

    Returns:
        {"harmful", "harmful_ablated", "harmless", "harmless_added"} to {"refused", "degenerate"},
        one value per prompt.
    """
    unit, norm, layer = direction
    blocks = list(decoder_blocks(model))
    writers = writer_modules(model)
    unit = unit.to(model.device)
    runs: dict[str, tuple[Sequence[Sequence[int]], contextlib.AbstractContextManager[None]]] = {
        "harmful": (harmful, contextlib.nullcontext()),
        "harmful_ablated": (harmful, ablation(blocks, writers, unit)),
        "harmless": (harmless, contextlib.nullcontext()),
        "harmless_added": (harmless, addition(blocks[layer], norm * unit)),
    }
    labels = {}
    for name, (prompts, intervention) in runs.items():
        with intervention:
            texts = [tokenizer.decode(ids) for ids in generate(model, tokenizer, prompts, maximum_new_tokens)]
        labels[name] = {
            "refused": [not jailbroken_arditi(text) for text in texts],
            "degenerate": [degenerate(text) for text in texts],
        }
    return labels

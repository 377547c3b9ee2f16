"""The published way to score candidate directions (arXiv 2406.11717, appendix C), written plainly: the yardstick.

Prompts run in padded batches of 32. Each candidate takes three full forward passes over
its prompts, one per sweep, with hooks on every block and writer and logits at every position.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from aird.directions.refusal_score import refusal_scores
from aird.models.structure import decoder_blocks, writer_modules

BATCH_SIZE = 32
Site = tuple[int, int]


def last_logits(model: Any, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the logits at the last position of every prompt, [prompts, vocabulary] float64."""
    found = []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[start : start + BATCH_SIZE]
        longest = max(map(len, batch))
        token_ids = torch.zeros((len(batch), longest), dtype=torch.long)
        mask = torch.zeros_like(token_ids)
        for row, prompt in enumerate(batch):
            token_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        device = model.device
        logits = model(input_ids=token_ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        found.append(logits[:, -1].double())
    return torch.cat(found)


@contextlib.contextmanager
def hooked(before: list[Any], after: list[Any]) -> Iterator[None]:
    """Hold pre-forward and forward hooks, each given as (module, hook)."""
    handles = [module.register_forward_pre_hook(hook) for module, hook in before]
    handles += [module.register_forward_hook(hook) for module, hook in after]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def without(direction: torch.Tensor) -> tuple[Any, Any]:
    """Return hooks that remove the direction from a block's input and from a writer's output."""

    def remove(states: torch.Tensor) -> torch.Tensor:
        unit = direction.to(states)
        return states - (states @ unit).unsqueeze(-1) * unit

    return (lambda _, args: (remove(args[0]), *args[1:])), (lambda _, __, output: remove(output))


@torch.no_grad()
def published_scores(
    model: Any,
    candidates: torch.Tensor,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    refusal_tokens: Sequence[int],
    sites: Sequence[Site],
) -> dict[Site, dict[str, float]]:
    """Return the mean induce, KL and bypass of the candidates at the given sites (layer, position index)."""
    blocks, writers = list(decoder_blocks(model)), writer_modules(model)
    plain = last_logits(model, harmless).log_softmax(-1)
    found: dict[Site, dict[str, float]] = {site: {} for site in sites}

    def ablated(site: Site, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        vector = candidates[site]
        before, after = without(vector / (vector.norm() + 1e-8))
        with hooked([(block, before) for block in blocks], [(writer, after) for writer in writers]):
            return last_logits(model, prompts)

    for site in sites:
        changed = ablated(site, harmless).log_softmax(-1)
        found[site]["kl"] = (plain.exp() * (plain - changed)).sum(-1).mean().item()
    for site in sites:
        found[site]["bypass"] = refusal_scores(ablated(site, harmful), refusal_tokens).mean().item()
    for site in sites:
        vector = candidates[site].to(model.dtype)
        with hooked([(blocks[site[0]], lambda _, args, vector=vector: (args[0] + vector, *args[1:]))], []):
            found[site]["induce"] = refusal_scores(last_logits(model, harmless), refusal_tokens).mean().item()
    return found

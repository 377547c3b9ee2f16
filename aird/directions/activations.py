"""Run a checkpoint once over the direction prompts: residual-stream activations at the post-instruction tokens.

`capture_activations` makes the activation cache, which all later nodes of this stage begin with. Index l of a layer
axis is the input of decoder block l, which is the output of block l - 1 (Arditi et al., arXiv 2406.11717;
`resid_pre` of their code).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from aird.directions.activation_cache import SPLITS, ActivationCache, Group
from aird.directions.refusal_score import refusal_scores
from aird.inference.hooks import hooks, on_input
from aird.inference.packing import Pack, last_logits, run_packed
from aird.models.blocks import decoder_blocks
from aird.prompts.chat import chat_tokens, post_instruction_tokens
from aird.prompts.sets import CLASSES, Record, select
from aird.settings.directions import Directions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def capture_activations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[str, Sequence[Record]],
    refusal_tokens: Mapping[str, Any],
    settings: Directions,
    seed: int,
) -> ActivationCache:
    """Return a checkpoint's activations and refusal scores on the direction prompts, and its candidate directions.

    Args:
        model, tokenizer: the checkpoint.
        prompts: class to the records of its prompt set.
        refusal_tokens: the record of `find_refusal_tokens`; its lead is put behind every prompt.
        settings: sizes of the splits.
        seed: decides which prompts of a split are used.

    Raises:
        ValueError: a split is missing or too small, or the model returns no numbers.
    """
    # All are selected before the first is run: what is missing shows at once.
    chosen = {
        (kind, split): select(prompts[kind], settings.selection(kind, split), seed)
        for kind in CLASSES
        for split in SPLITS
    }
    lead = refusal_tokens.get("lead", [])
    positions = len(post_instruction_tokens(tokenizer)) + len(lead)
    groups = {}
    for key, records in chosen.items():
        tokens = [[*chat_tokens(tokenizer, record["instruction"]), *lead] for record in records]
        activations, scores = capture(model, tokens, positions, refusal_tokens["tokens"])
        groups[key] = Group(activations, scores, tuple(record["id"] for record in records))
    return ActivationCache.of(groups, lead)


@torch.no_grad()
def capture(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], positions: int, refusal_tokens: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the block inputs of every prompt at its last `positions` tokens, and its refusal score.

    Args:
        model: a Transformers causal language model with L decoder blocks.
        prompts: token ids of n templated prompts.
        positions: number of post-instruction tokens, P.
        refusal_tokens: ids whose probability makes the refusal score.

    Returns:
        activations [n, L, P, d_model] in the model's type, on the CPU: axis 2 runs over positions
        -P to -1; refusal scores [n] float64.
    """
    blocks = list(decoder_blocks(model))
    kept: torch.Tensor | None = None
    scores = torch.empty(len(prompts), dtype=torch.float64)

    def run(pack: Pack) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = pack.last_tokens(positions).to(model.device)
        states: list[torch.Tensor] = []

        def keep(hidden: torch.Tensor) -> torch.Tensor:
            # Only what is kept leaves the device, so memory grows with it and not with the prompts' length.
            states.append(hidden[0, wanted.to(hidden.device)].to("cpu"))
            return hidden

        with hooks(before=[(block, on_input(keep)) for block in blocks]):
            logits = last_logits(model, pack)
        return torch.stack(states, dim=1), refusal_scores(logits[0], refusal_tokens).cpu()

    # What is kept of a prompt lies behind the shared prefix, or it would be read from another prompt.
    for pack, (states, refusal) in run_packed(model, prompts, run, own_tokens=positions):
        if kept is None:
            kept = torch.empty((len(prompts), *states.shape[1:]), dtype=states.dtype)
        indices = list(pack.prompts)
        kept[indices] = states
        scores[indices] = refusal
    assert kept is not None, "no prompt was given"
    if not bool(kept.isfinite().all()):
        raise ValueError("the model returns NaN or infinite activations: the checkpoint is broken")
    return kept, scores

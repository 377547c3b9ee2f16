"""Which tokens carry what compression did to a matrix along one input direction.

A change u a^T of a matrix adds u (a . x) to its output, so along one direction a token carries (a . x)^2 of the squared
change. The tokens of the chat template are told one by one; those of instructions together, and those of replies,
so that no text of a prompt is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from aird.inference.packing import Pack, plan_packs
from aird.patching.compensation import read_inputs
from aird.patching.records import TokenShare
from aird.patching.replies import ReplySet
from aird.prompts.chat import common_prefix_length, post_instruction_tokens, template_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOLD = 3  # tokens that carry most


@torch.no_grad()
def token_shares(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Sequence[ReplySet],
    directions: Mapping[str, torch.Tensor],
) -> dict[str, list[TokenShare]]:
    """Return the tokens that carry most of the squared projection on a direction of each module's inputs.

    It takes one pass over the prompts. Sums by token in the pass of the covariances would need a matrix for each of the
    template's last tokens, as the direction is known only after it.

    Args:
        model: the compressed model.
        tokenizer: with its chat template.
        sets: prompts, each the template around an instruction, with their replies.
        directions: full names of linear modules to a direction, [d_in] float32.
    """
    before, after = template_prefix(tokenizer), post_instruction_tokens(tokenizer)
    # As the vocabulary writes them, so that a line break is one character.
    names = [*tokenizer.convert_ids_to_tokens(before), "prompt", *tokenizer.convert_ids_to_tokens(after), "reply"]
    positions = [*range(len(before)), None, *range(-len(after), 0), None]
    places = [
        _places(prompt, len(reply), before, after)
        for each in sets
        for prompt, reply in zip(each.prompts, each.replies, strict=True)
    ]
    sums = {module: torch.zeros(len(names), dtype=torch.float64) for module in directions}
    packs = plan_packs(model, [sequence for each in sets for sequence in each.sequences])
    of_packs = {}
    for pack in packs:
        start = pack.prefix_length
        of_packs[pack.prompts] = torch.cat(
            [places[pack.prompts[0]][:start], *(places[index][start:] for index in pack.prompts)]
        )

    def add(module: str, rows: torch.Tensor, counts: torch.Tensor, pack: Pack) -> None:
        carried = counts * (rows @ directions[module]).square()
        sums[module].index_add_(0, of_packs[pack.prompts], carried.double())

    read_inputs(model, packs, {module: model.get_submodule(module) for module in directions}, add)
    told: dict[str, list[TokenShare]] = {}
    for module, carried in sums.items():
        best = (carried / carried.sum()).topk(min(TOLD, len(names)))
        told[module] = [
            {"token": names[place], "position": positions[place], "share": share}
            for share, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
    return told


def _places(prompt: Sequence[int], reply: int, before: Sequence[int], after: Sequence[int]) -> torch.Tensor:
    """Return of each token of a prompt and its reply which it is: of the template, of the instruction, of the reply.

    Only what equals the template's tokens counts as such.

    Args:
        prompt: token ids.
        reply: number of its tokens.
        before, after: the template's tokens around the instruction.
    """
    first = common_prefix_length([before, prompt])
    last = min(common_prefix_length([after[::-1], prompt[::-1]]), len(prompt) - first)
    instruction, whole = len(before), len(before) + 1 + len(after)
    own = [instruction] * (len(prompt) - first - last)
    return torch.tensor([*range(first), *own, *range(whole - last, whole), *[whole] * reply])

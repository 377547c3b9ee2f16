"""Many prompts in one sequence: no padding, and the shared start of the template only once.

Chat prompts share the template's first tokens (system prompt, user marker). A
pack is one sequence, that prefix followed by the rest of every prompt, with
positions that restart after the prefix and an attention mask under which each
prompt sees the prefix and itself only. In exact arithmetic every prompt gets the
states it would get alone. Where a model does not honour such a mask (checked by
`honours_packs`), each prompt becomes a pack of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from aird.inference.batching import Batches
from aird.inference.cpu_attention import segmented_attention
from aird.prompts.chat import common_prefix_length

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# What a pack starts with: enough to fill a processor's matrix units, few repeats of the shared prefix.
PACK_TOKENS = 512
# What `honours_packs` found, for as long as the model lives.
_HONOURS: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Pack:
    """One sequence of several prompts.

    Attributes:
        token_ids: [tokens] int64.
        position_ids: [tokens] int64, each token's position in its own prompt.
        visible: [tokens, tokens] bool, what each token attends to; None for a single prompt.
        ends: [prompts] int64, index in the sequence of each prompt's last token.
        prefix_length: tokens at the start that belong to every prompt.
        prompts: index of each prompt in the list that was packed.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    visible: torch.Tensor | None
    ends: torch.Tensor
    prefix_length: int
    prompts: tuple[int, ...]

    def last_tokens(self, count: int) -> torch.Tensor:
        """Return where in the sequence each prompt's last `count` tokens stand, [prompts, count] int64."""
        return self.ends[:, None] + torch.arange(1 - count, 1)

    def model_inputs(self, model: Any, rows: int = 1) -> dict[str, Any]:
        """Return the keyword arguments of a forward pass with `rows` identical rows."""
        device = next(model.parameters()).device
        inputs: dict[str, Any] = {
            "input_ids": self.token_ids.to(device).expand(rows, -1),
            "position_ids": self.position_ids.to(device).expand(rows, -1),
            "use_cache": False,
        }
        if self.visible is not None:
            # Additive, in the model's type: a boolean mask means something else to eager attention.
            blocked = torch.finfo(model.dtype).min
            mask = torch.zeros(self.visible.shape, dtype=model.dtype).masked_fill(~self.visible, blocked)
            inputs["attention_mask"] = mask.to(device).expand(rows, 1, -1, -1)
        return inputs


class Packer:
    """Prompts that share the start of their template, ready to be put into packs.

    Attributes:
        prefix_length: tokens at the start that all prompts share, and that a pack holds once.
        own_lengths: of each prompt, its tokens behind that prefix.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], own_tokens: int = 1) -> None:
        """Find the shared prefix.

        Args:
            prompts: token ids of templated prompts.
            own_tokens: at least so many last tokens of each prompt stay outside the shared prefix,
                also of a prompt that is a prefix of another.
        """
        self._prompts = prompts
        shortest = min(len(prompt) for prompt in prompts)
        self.prefix_length = max(0, min(common_prefix_length(prompts), shortest - own_tokens))
        self.own_lengths = [len(prompt) - self.prefix_length for prompt in prompts]

    def pack(self, group: Sequence[int]) -> Pack:
        """Return one pack of the prompts with these indices."""
        prefix_length = self.prefix_length
        token_ids = list(self._prompts[group[0]][:prefix_length])
        position_ids = list(range(prefix_length))
        owner = [-1] * prefix_length
        ends = []
        for index in group:
            own = list(self._prompts[index][prefix_length:])
            token_ids += own
            position_ids += range(prefix_length, prefix_length + len(own))
            owner += [index] * len(own)
            ends.append(len(token_ids) - 1)
        visible = None
        if len(group) > 1:
            owners = torch.tensor(owner)
            same = (owners[:, None] == owners[None, :]) | (owners[None, :] == -1)
            visible = same & torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
        return Pack(
            token_ids=torch.tensor(token_ids),
            position_ids=torch.tensor(position_ids),
            visible=visible,
            ends=torch.tensor(ends),
            prefix_length=prefix_length,
            prompts=tuple(group),
        )


def make_packs(prompts: Sequence[Sequence[int]], maximum_tokens: int, own_tokens: int = 1) -> list[Pack]:
    """Pack prompts, in order, into sequences of about `maximum_tokens` tokens.

    Args:
        prompts: token ids of templated prompts.
        maximum_tokens: a pack is closed when it would grow beyond this; 1 gives a pack per prompt.
        own_tokens: as of `Packer`.
    """
    packer = Packer(prompts, own_tokens)
    groups: list[list[int]] = []
    size = maximum_tokens
    for index, own in enumerate(packer.own_lengths):
        if not groups or size + own > maximum_tokens:
            groups.append([])
            size = packer.prefix_length
        groups[-1].append(index)
        size += own
    return [packer.pack(group) for group in groups]


@torch.no_grad()
def plan_packs(
    model: Any, prompts: Sequence[Sequence[int]], maximum_tokens: int = PACK_TOKENS, own_tokens: int = 1
) -> list[Pack]:
    """Return packs that this model computes rightly; arguments as of `make_packs`."""
    return make_packs(prompts, maximum_tokens if honours_packs(model, prompts) else 1, own_tokens)


def run_packed(
    model: Any, prompts: Sequence[Sequence[int]], work: Callable[[Pack], Result], own_tokens: int = 1
) -> Iterator[tuple[Pack, Result]]:
    """Yield (pack, work(pack)) for packs that hold all prompts once, as large as pays on this device.

    Args:
        model: a Transformers causal language model.
        prompts: token ids of templated prompts.
        work: runs one pack; again, in parts, where it did not fit.
        own_tokens: as of `Packer`.
    """
    packer = Packer(prompts, own_tokens)

    def run(group: Sequence[int]) -> tuple[Pack, Result]:
        pack = packer.pack(group)
        return pack, work(pack)

    # The prefix takes its part of the first pack's tokens, so that packs are those of `make_packs`.
    first = PACK_TOKENS - packer.prefix_length if honours_packs(model, prompts) else 1
    batches = Batches(max(1, first), next(model.parameters()).device)
    if first == 1:
        batches.grows = False
    for _, done in batches.run(range(len(prompts)), run, packer.own_lengths):
        yield done


@torch.no_grad()
def honours_packs(model: Any, prompts: Sequence[Sequence[int]]) -> bool:
    """Return whether this model computes packs rightly; asked once per model.

    Two packed prompts are compared with the same prompts alone. A model that mixes tokens in
    another way than masked attention (state spaces, positions taken from the row) fails it, and
    then gets one prompt per pack.
    """
    if model not in _HONOURS:
        # The shortest two, and not again for the next prompts: each check costs a capture some per cent.
        probe = sorted(prompts, key=len)[:2]
        if len(probe) < 2:
            return True
        _HONOURS[model] = _packing_agrees(model, probe)
        if not _HONOURS[model]:
            logger.warning("this model does not honour a packing mask; prompts run one by one, which is slower")
    return _HONOURS[model]


def _packing_agrees(model: Any, prompts: Sequence[Sequence[int]]) -> bool:
    (packed,) = make_packs(prompts, 10**9)
    try:
        together = last_logits(model, packed)[0].double().softmax(-1)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        logger.warning("a packed forward pass failed: %s", error)
        return False
    alone = torch.cat([last_logits(model, pack)[0] for pack in make_packs(prompts, 1)]).double().softmax(-1)
    # Total variation distance; rounding of a 16-bit type stays far below, a wrong mask far above.
    return bool(((together - alone).abs().sum(-1) / 2).max() < 0.1)


def run_pack(model: Any, pack: Pack, rows: int = 1, logits_to_keep: int | torch.Tensor = 1) -> torch.Tensor:
    """Run `rows` identical rows of a pack through the model.

    Args:
        model: a Transformers causal language model.
        pack: what to run.
        rows: identical unless hooks tell them apart.
        logits_to_keep: indices of tokens, or how many last ones: the vocabulary projection runs on
            these only.

    Returns:
        logits [rows, kept tokens, vocabulary].
    """
    logits: torch.Tensor = pack_output(model, pack, rows, logits_to_keep=logits_to_keep).logits
    return logits


def pack_output(model: Any, pack: Pack, rows: int = 1, **options: Any) -> Any:
    """Return the model's whole output for a pack; arguments as of `run_pack`, and others of the forward pass."""
    with segmented_attention(model, pack.prefix_length, pack.ends.tolist()):
        return model(**{**pack.model_inputs(model, rows), **options})


@torch.no_grad()
def last_logits(model: Any, pack: Pack, rows: int = 1) -> torch.Tensor:
    """Return the logits after each prompt's last token, [rows, prompts, vocabulary]."""
    return run_pack(model, pack, rows, logits_to_keep=pack.ends)

"""Many prompts in one sequence: no padding, and the shared start of the template only once.

Chat prompts share the template's first tokens (system prompt, user marker). A
pack is one sequence, that prefix followed by the rest of every prompt, with
positions that restart after the prefix and an attention mask under which each
prompt sees the prefix and itself only. In exact arithmetic every prompt gets the
states it would get alone. Not every model computes that: a sliding window, or a
state that passes from token to token, is not in the mask. So packs are used as
far as `honours_packs` has proven them on the model itself, for prompts and packs
as long as those at hand; elsewhere each prompt becomes a pack of its own.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from aird.inference.batching import Batches
from aird.inference.cpu_attention import segmented_attention
from aird.prompts.chat import common_prefix_length
from aird.support import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# What a pack starts with: enough to fill a processor's matrix units, few repeats of the shared prefix.
PACK_TOKENS = 512
# How far logits of a packed prompt may be from those of the prompt alone, in parts of their spread. On a chat model of
# 135M, sums in another order moved them by 2e-6 in float32, by 0.04 in bfloat16, by 0.14 with activations in 8 bits; a
# mask that hides nothing moved them by 0.6 and more.
EXACT, ROUNDED = 0.002, 0.25


@dataclass
class _Proof:
    """What is known of how a model computes packs.

    Attributes:
        tokens: of the longest pack that was computed rightly.
        prompt: tokens of the longest prompt that was.
        wrong: (tokens of the pack, of its longest prompt) where it was not.
    """

    tokens: int = 0
    prompt: int = 0
    wrong: list[tuple[int, int]] = field(default_factory=list)


# For as long as the model lives.
_PROOFS: WeakKeyDictionary[Any, _Proof] = WeakKeyDictionary()


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

    def model_inputs(self, model: PreTrainedModel, rows: int = 1) -> dict[str, torch.Tensor | bool]:
        """Return the keyword arguments of a forward pass with `rows` identical rows."""
        device = next(model.parameters()).device
        inputs: dict[str, torch.Tensor | bool] = {
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

    def tokens(self, group: Sequence[int]) -> int:
        """Return how long a pack of the prompts with these indices is."""
        return self.prefix_length + sum(self.own_lengths[index] for index in group)

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


def plan_packs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], maximum_tokens: int = PACK_TOKENS, own_tokens: int = 1
) -> list[Pack]:
    """Return packs that this model computes rightly; arguments as of `make_packs`."""
    packed = honours_packs(model, prompts, maximum_tokens, own_tokens)
    return make_packs(prompts, maximum_tokens if packed else 1, own_tokens)


def run_packed(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], work: Callable[[Pack], Result], own_tokens: int = 1
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

    packed = honours_packs(model, prompts, PACK_TOKENS, own_tokens)
    # The prefix takes its part of the first pack's tokens, so that packs are those of `make_packs`.
    batches = Batches(max(1, PACK_TOKENS - packer.prefix_length) if packed else 1, next(model.parameters()).device)
    batches.grows &= packed
    with progress.count("prompts", len(prompts)) as counted:
        for group, done in batches.run(range(len(prompts)), run, packer.own_lengths):
            yield done
            counted.add(len(group))
            if batches.grows and not honours_packs(model, prompts, packer.prefix_length + batches.size, own_tokens):
                batches.shrink()


@torch.no_grad()
def honours_packs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], maximum_tokens: int = PACK_TOKENS, own_tokens: int = 1
) -> bool:
    """Return whether this model computes packs of these prompts rightly.

    It is proven on a pack of the longest prompts, as long as the packs will be, whose last two are compared with the
    same prompts alone. What is proven once holds for packs and prompts that are no longer. Models that mix tokens in
    another way than masked attention (state spaces, positions taken from the row) fail it.

    Args:
        model: a Transformers causal language model.
        prompts: token ids of templated prompts.
        maximum_tokens, own_tokens: as of `make_packs`.
    """
    if len(prompts) < 2:
        return True
    packer = Packer(prompts, own_tokens)
    longest = max(map(len, prompts))
    tokens = min(packer.tokens(range(len(prompts))), max(maximum_tokens, longest))
    proof = _PROOFS.setdefault(model, _Proof())
    if tokens <= proof.tokens and longest <= proof.prompt:
        return True
    if any(tokens >= pack and longest >= prompt for pack, prompt in proof.wrong):
        return False
    by_length = sorted(range(len(prompts)), key=packer.own_lengths.__getitem__)
    # Longest last, where the shared prefix is far away; a length that is proven needs no full pack again.
    needed = tokens if tokens > proof.tokens else 0
    count = 2
    while packer.tokens(by_length[-count:]) < needed:
        count += 1
    window = _window(model)
    if longest > window:
        proof.wrong.append((0, window + 1))
    elif _packing_agrees(model, packer, by_length[-count:]):
        proof.tokens, proof.prompt = max(tokens, proof.tokens), max(longest, proof.prompt)
        return True
    else:
        # Where the shortest fail as well, no pack holds, and it is not asked again.
        hopeless = not proof.tokens and not _packing_agrees(model, packer, by_length[:2])
        proof.wrong.append((0, 0) if hopeless else (tokens, longest))
    logger.warning(
        "packs of %d tokens with prompts of up to %d do not give this model the states of the prompts alone; "
        "instead of such packs prompts run one by one, which is slower",
        tokens,
        longest,
    )
    return False


def _window(model: PreTrainedModel) -> int:
    """Return how many tokens the narrowest attention of a model sees, as far as its configuration says so."""
    config = model.config.get_text_config()
    widths = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((width for width in widths if width), default=sys.maxsize)


def _packing_agrees(model: PreTrainedModel, packer: Packer, group: Sequence[int]) -> bool:
    """Compare the last two prompts of a pack with the same prompts alone."""
    try:
        together = last_logits(model, packer.pack(group))[0, -2:]
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        logger.warning("a packed forward pass failed: %s", error)
        return False
    alone = torch.cat([last_logits(model, packer.pack([index]))[0] for index in group[-2:]])
    return logits_agree(model, together, alone)


def logits_agree(model: PreTrainedModel, together: torch.Tensor, alone: torch.Tensor) -> bool:
    """Return whether logits of prompts that ran together are those of the prompts alone, up to the model's rounding.

    Args:
        model: what computed both.
        together, alone: [..., vocabulary].
    """
    # A shift of all logits changes no probability.
    spread, difference = (
        each - each.mean(-1, keepdim=True) for each in (alone.double(), together.double() - alone.double())
    )
    exact = model.dtype == torch.float32 and getattr(model.config, "quantization_config", None) is None
    return bool((difference.norm(dim=-1) <= (EXACT if exact else ROUNDED) * spread.norm(dim=-1)).all())


def run_pack(model: PreTrainedModel, pack: Pack, rows: int = 1, logits_to_keep: int | torch.Tensor = 1) -> torch.Tensor:
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


def pack_output(model: PreTrainedModel, pack: Pack, rows: int = 1, **options: Any) -> Any:
    """Return the model's whole output for a pack; arguments as of `run_pack`, and others of the forward pass."""
    with segmented_attention(model, pack.prefix_length, pack.ends.tolist()):
        return model(**{**pack.model_inputs(model, rows), **options})


@torch.no_grad()
def last_logits(model: PreTrainedModel, pack: Pack, rows: int = 1) -> torch.Tensor:
    """Return the logits after each prompt's last token, [rows, prompts, vocabulary]."""
    return run_pack(model, pack, rows, logits_to_keep=pack.ends)

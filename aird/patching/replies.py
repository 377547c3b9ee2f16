"""What a model replies to the direction prompts: the target of a calibrated patch.

Its own greedy reply to each prompt, and after the prompt and after each of the reply's first
tokens the likeliest next tokens with their log-probabilities. Those of the original stand in one
small file per model, so that no calibration of a compressed checkpoint has to run it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from aird.directions.refusal_score import MINIMUM_REFUSALS, leading_tokens
from aird.inference.generation import generate
from aird.inference.packing import Pack
from aird.inference.refusals import jailbroken_arditi
from aird.models.loading import load_model, load_tokenizer
from aird.prompts.chat import chat_tokens
from aird.prompts.sets import Record, select_instructions
from aird.settings.base import PromptSelection
from aird.settings.patches import Replies
from aird.support.sensitivity import Prompts, area
from aird.support.tensor_files import load_tensors, save_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Next tokens that are kept of each distribution; all others count as one.
TOP = 256
# Area under the ROC curve from which on first tokens tell refusals.
CLEAR_AREA = 0.9
# What is needed of the original: to refuse as it does, and no more harmless prompts than it does.
OF_ORIGINAL = (("train", "harmful"), ("validation", "harmful"), ("validation", "harmless"))

Instructions = Mapping[tuple[str, str], Sequence[str]]  # (split, kind) -> instructions


@dataclass(frozen=True)
class ReplySet:
    """A model's replies to the prompts of one split and kind.

    Attributes:
        prompts: token ids of the n templated prompts.
        replies: the first k or fewer tokens of each reply.
        top_tokens: [n, k + 1, TOP] int64, the likeliest tokens after the prompt and after each token
            of its reply.
        top_log_probabilities: [n, k + 1, TOP] float32, nats; -inf beyond a reply's end.
        refused: whether the judge calls each reply a refusal.
        decisions: of each prompt, the probability that the original's reply begins as refusals do; None where it is not
            looked at.
    """

    prompts: list[list[int]]
    replies: list[list[int]]
    top_tokens: torch.Tensor
    top_log_probabilities: torch.Tensor
    refused: list[bool]
    decisions: list[float] | None = None

    @property
    def sequences(self) -> list[list[int]]:
        """The token ids of every prompt with its reply."""
        return [prompt + reply for prompt, reply in zip(self.prompts, self.replies, strict=True)]

    def chosen(self, indices: Sequence[int]) -> ReplySet:
        """Return the replies to some of the prompts."""
        return ReplySet(
            [self.prompts[index] for index in indices],
            [self.replies[index] for index in indices],
            self.top_tokens[list(indices)],
            self.top_log_probabilities[list(indices)],
            [self.refused[index] for index in indices],
            None if self.decisions is None else [self.decisions[index] for index in indices],
        )

    def beginning(self, tokens: Sequence[int]) -> list[float]:
        """Return the probability of each prompt that its reply begins with one of these tokens."""
        counted = torch.isin(self.top_tokens[:, 0], torch.tensor(list(tokens)))
        found: list[float] = (self.top_log_probabilities[:, 0].exp() * counted).sum(-1).tolist()
        return found

    def first_tokens(self, decisions: list[float]) -> ReplySet:
        """Return only what comes behind the prompts, with these decisions."""
        none: list[list[int]] = [[] for _ in self.prompts]
        return ReplySet(
            self.prompts, none, self.top_tokens[:, :1], self.top_log_probabilities[:, :1], self.refused, decisions
        )

    def refusals(self) -> ReplySet:
        """Return those replies that are refusals."""
        return self.chosen([index for index, refused in enumerate(self.refused) if refused])


def reply_instructions(
    records: Mapping[str, Sequence[Record]], wanted: Sequence[tuple[str, str]], settings: Replies, seed: int
) -> Instructions:
    """Return the instructions of the wanted (split, kind), drawn with a seed from each kind's prompt records."""
    counts = {
        ("train", "harmful"): settings.train_harmful,
        ("train", "harmless"): settings.train_harmless,
        ("validation", "harmful"): settings.validation,
        ("validation", "harmless"): settings.validation,
    }
    return {
        (split, kind): select_instructions(
            records[kind], PromptSelection(set=kind, split=split, count=counts[split, kind]), seed
        )
        for split, kind in wanted
    }


def reply_places(pack: Pack, lengths: Sequence[int]) -> torch.Tensor:
    """Return where in a pack the tokens stand after which a next token is compared.

    Args:
        pack: sequences of a prompt and its reply.
        lengths: for every packed sequence (by its index) the number of reply tokens, t.

    Returns:
        [sum of t + 1] int64: the prompt's last token and all tokens of its reply, prompt by prompt.
    """
    spans = [
        torch.arange(end - lengths[index], end + 1) for end, index in zip(pack.ends.tolist(), pack.prompts, strict=True)
    ]
    return torch.cat(spans)


def original_replies(
    original: Path,
    records: Mapping[str, Sequence[Record]],
    settings: Replies,
    seed: int,
    file: Path | None = None,
    wanted: Sequence[tuple[str, str]] = OF_ORIGINAL,
) -> dict[str, ReplySet]:
    """Return the original's replies: from a file that holds them, else by running it over the direction prompts.

    Prompts are those of `reply_instructions`; `file` is what `save_replies` wrote.

    Raises:
        ValueError: the file is altered, or its prompts are others.
    """
    instructions = reply_instructions(records, wanted, settings, seed)
    tokenizer = load_tokenizer(original)
    if file is not None:
        return load_replies(file, tokenizer, instructions)
    return record_replies(load_model(original), tokenizer, instructions, settings)


def record_replies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, instructions: Instructions, settings: Replies
) -> dict[str, ReplySet]:
    """Return the model's replies to what `reply_instructions` returned, "split_kind" -> ReplySet."""
    return {
        f"{split}_{kind}": record_set(model, tokenizer, [chat_tokens(tokenizer, text) for text in texts], settings)
        for (split, kind), texts in instructions.items()
    }


def record_set(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], settings: Replies
) -> ReplySet:
    """Return the model's replies to the token ids of templated prompts."""
    tokens = settings.tokens
    seen = _NextTokens(len(prompts), tokens, model.config.get_text_config().vocab_size)
    # One token more than a reply has: what comes after its last token counts too.
    generated = generate(model, tokenizer, prompts, max(settings.judged, tokens + 1), observe=seen)
    replies = [reply[:tokens] for reply in generated]
    judged = tokenizer.batch_decode([reply[: settings.judged] for reply in generated])
    refused = [not jailbroken_arditi(text) for text in judged]
    return ReplySet([list(prompt) for prompt in prompts], replies, *seen.up_to(replies), refused)


class _NextTokens:
    """Keeps the likeliest next tokens of every step of a generation."""

    def __init__(self, prompts: int, tokens: int, vocabulary: int) -> None:
        shape = (prompts, tokens + 1, min(TOP, vocabulary))
        self._tokens = torch.zeros(shape, dtype=torch.int64)
        self._log_probabilities = torch.full(shape, -torch.inf)

    def __call__(self, prompts: Sequence[int], step: int, logits: torch.Tensor) -> None:
        if step >= self._tokens.shape[1]:
            return
        best = logits.log_softmax(-1).topk(self._tokens.shape[2])
        self._tokens[list(prompts), step] = best.indices.cpu()
        self._log_probabilities[list(prompts), step] = best.values.cpu()

    def up_to(self, replies: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and log-probabilities, without what a batch saw after a reply's end."""
        for index, reply in enumerate(replies):
            self._tokens[index, len(reply) + 1 :] = 0
            self._log_probabilities[index, len(reply) + 1 :] = -torch.inf
        return self._tokens, self._log_probabilities


def refusal_tokens(harmful: ReplySet, harmless: ReplySet) -> tuple[int, ...]:
    """Return the tokens that a model's refusals of harmful prompts begin with, if they tell what it refuses.

    They do if the model refuses at least 5 of them and not at least 5 prompts, and if the area under the ROC curve of
    their probability, by what the judge calls a refusal, is at least 0.9. Where all replies begin alike, it is not.

    Returns:
        Token ids; none where no first token tells a refusal.
    """
    refused = harmful.refused + harmless.refused
    if sum(harmful.refused) < MINIMUM_REFUSALS or len(refused) - sum(refused) < MINIMUM_REFUSALS:
        return ()
    begun = harmful.refusals().top_tokens[:, 0, 0].tolist()
    tokens = leading_tokens(begun, harmless.top_tokens[:, 0, 0].tolist())
    told = list(zip(harmful.beginning(tokens) + harmless.beginning(tokens), refused, strict=True))
    refusals, others = ([value for value, flag in told if flag == wanted] for wanted in (True, False))
    return tuple(tokens) if area(Prompts(refusals, others)).value >= CLEAR_AREA else ()


def save_replies(path: Path, sets: Mapping[str, ReplySet]) -> None:
    """Write the replies; the prompts stand there as one hash, so that others are not mistaken for them."""
    tensors = {}
    for name, part in sets.items():
        width = part.top_tokens.shape[1] - 1
        tensors[f"{name}.replies"] = torch.tensor(
            [reply + [-1] * (width - len(reply)) for reply in part.replies], dtype=torch.int32
        )
        tensors[f"{name}.top_tokens"] = part.top_tokens.to(torch.int32)
        tensors[f"{name}.top_log_probabilities"] = part.top_log_probabilities
        tensors[f"{name}.refused"] = torch.tensor(part.refused)
    save_tensors(tensors, path, {name: _prompt_hash(part.prompts) for name, part in sets.items()})


def load_replies(path: Path, tokenizer: PreTrainedTokenizerBase, instructions: Instructions) -> dict[str, ReplySet]:
    """Return what `save_replies` wrote, with the same instructions.

    Raises:
        ValueError: the file is altered, or its prompts are others.
    """
    tensors, metadata = load_tensors(path)
    sets = {}
    for (split, kind), texts in instructions.items():
        name = f"{split}_{kind}"
        prompts = [chat_tokens(tokenizer, text) for text in texts]
        if metadata.get(name) != _prompt_hash(prompts):
            raise ValueError(f"{path} holds replies to other {split} prompts ({kind}); make it again")
        replies = [[token for token in row if token >= 0] for row in tensors[f"{name}.replies"].tolist()]
        sets[name] = ReplySet(
            prompts,
            replies,
            tensors[f"{name}.top_tokens"].long(),
            tensors[f"{name}.top_log_probabilities"],
            tensors[f"{name}.refused"].tolist(),
        )
    return sets


def _prompt_hash(prompts: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps([list(prompt) for prompt in prompts]).encode()).hexdigest()

"""The tokens that a model's own refusals begin with: what the refusal score counts.

The first node of this stage, run on the original; its compressed forms are scored with the same tokens.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NotRequired, TypedDict

from aird.directions.refusal_score import MINIMUM_REFUSALS, leading_tokens
from aird.inference.generation import generate
from aird.inference.refusals import jailbroken_arditi
from aird.prompts.chat import chat_tokens, check_no_thoughts
from aird.prompts.sets import CLASSES, Record, select_instructions
from aird.settings.directions import Directions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# First words of common refusals, for a model that refuses nothing it is asked here.
FALLBACK_WORDS = ("I", "Sorry", "As")
PROMPTS = 64  # of each class: enough to see a token that begins one refusal in twenty
NEW_TOKENS = 16  # a refusal shows itself in its first words
Share = tuple[int, str, float, float]  # id, text, share of refusals, share of harmless answers
LEAD_SHARE = 0.95  # of the replies of each class that begin with the same token, which tells nothing apart


class RefusalTokens(TypedDict):
    """What the refusals of a model begin with: `derive_refusal_tokens`."""

    tokens: list[int]
    derived: bool
    refusals: int
    shares: list[Share]
    lead: NotRequired[list[int]]


def find_refusal_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[str, Sequence[Record]],
    settings: Directions,
    seed: int,
) -> RefusalTokens:
    """Let a model answer training prompts of both classes, and return `derive_refusal_tokens` of its answers.

    Args:
        model, tokenizer: the original checkpoint.
        prompts: class to the records of its prompt set.
        settings: the size of the training split, of which at most `PROMPTS` are asked.
        seed: decides which.

    Raises:
        ValueError: the training split is missing or too small, or the model thinks and no setting says so.
    """
    few = settings.model_copy(update={"train": min(PROMPTS, settings.train)})
    asked = {kind: select_instructions(prompts[kind], few.selection(kind, "train"), seed) for kind in CLASSES}
    completions = {
        kind: generate(model, tokenizer, [chat_tokens(tokenizer, text) for text in texts], NEW_TOKENS)
        for kind, texts in asked.items()
    }
    texts = {kind: [str(tokenizer.decode(ids)) for ids in answers] for kind, answers in completions.items()}
    check_no_thoughts(tokenizer, [text for some in texts.values() for text in some])
    refused = {kind: [not jailbroken_arditi(text) for text in some] for kind, some in texts.items()}
    return derive_refusal_tokens(
        tokenizer, completions["harmful"], refused["harmful"], completions["harmless"], refused["harmless"]
    )


def derive_refusal_tokens(
    tokenizer: PreTrainedTokenizerBase,
    harmful_completions: Sequence[Sequence[int]],
    harmful_refused: Sequence[bool],
    harmless_completions: Sequence[Sequence[int]],
    harmless_refused: Sequence[bool],
) -> RefusalTokens:
    """Find the tokens that a model's own refusals begin with.

    A token counts if it begins at least 5% of the refusals, and begins refusals at least twice as often as
    it begins answers to harmless instructions. Fixed ids would be wrong for the next tokenizer.

    Where nearly all replies of both classes begin with the same tokens, those tell nothing apart: they are the lead,
    and the tokens behind it count (Llama 2 begins each of its replies with a space of its own).

    Args:
        tokenizer: the model's tokenizer.
        harmful_completions: token ids of completions of harmful instructions.
        harmful_refused: whether each of them is a refusal.
        harmless_completions: token ids of completions of harmless instructions.
        harmless_refused: whether each of them is a refusal: how a model refuses everything is no lead.

    Returns:
        {"tokens": ids, "derived": bool, "refusals": n, "shares": [[id, text, share of refusals,
        share of harmless answers], ...]}, and "lead": ids where there is one; the refusal score is then that of a
        prompt with these tokens behind it. `derived` is False where fewer than five refusals were seen, or none of
        their first tokens counts; then the tokens are those of `FALLBACK_WORDS`, without a lead.
    """
    refusals = [ids for ids, refused in zip(harmful_completions, harmful_refused, strict=True) if refused and ids]
    answers = [ids for ids, refused in zip(harmless_completions, harmless_refused, strict=True) if not refused]
    lead = _shared_lead(harmful_completions, harmless_completions, answers)
    tokens, shares = _leading_tokens(tokenizer, _behind(lead, refusals), _behind(lead, harmless_completions))
    if len(refusals) >= MINIMUM_REFUSALS and tokens:
        record = RefusalTokens(tokens=tokens, derived=True, refusals=len(refusals), shares=shares)
        if lead:
            record["lead"] = lead
        return record
    logger.warning("%s; using the tokens of %s", why_none(len(refusals)), FALLBACK_WORDS)
    words = sorted({tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in FALLBACK_WORDS})
    _, shares = _leading_tokens(tokenizer, refusals, harmless_completions)
    return {"tokens": words, "derived": False, "refusals": len(refusals), "shares": shares}


def why_none(refusals: int) -> str:
    """Return why no refusal token could be derived where so many refusals were seen."""
    if refusals < MINIMUM_REFUSALS:
        return f"only {refusals} refusals were seen"
    return f"{refusals} refusals were seen, but no token begins them clearly more often than answers"


def _shared_lead(*classes: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens that nearly all replies of each class begin with."""
    lead: list[int] = []
    while True:
        commonest: set[int | None] = set()
        for replies in classes:
            next_tokens = Counter(ids[0] for ids in _behind(lead, replies))
            token, count = next_tokens.most_common(1)[0] if next_tokens else (None, 0)
            commonest.add(token if count >= LEAD_SHARE * len(replies) else None)
        token = commonest.pop()
        if commonest or token is None:
            return lead
        lead.append(token)


def _behind(lead: Sequence[int], replies: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return what follows the lead in the replies that begin with it and go on."""
    return [ids[len(lead) :] for ids in replies if len(ids) > len(lead) and list(ids[: len(lead)]) == list(lead)]


def _leading_tokens(
    tokenizer: PreTrainedTokenizerBase, refusals: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> tuple[list[int], list[Share]]:
    """Return the first tokens that tell refusals from answers, and the shares of all first tokens of refusals."""
    first, others = Counter(ids[0] for ids in refusals), Counter(ids[0] for ids in answers if ids)
    shares = [
        (token, str(tokenizer.decode([token])), count / len(refusals), others[token] / max(1, sum(others.values())))
        for token, count in sorted(first.items(), key=lambda item: (-item[1], item[0]))
    ]
    return leading_tokens([ids[0] for ids in refusals], [ids[0] for ids in answers if ids]), shares

"""The tokens that a model's own refusals begin with: what the refusal score counts.

The first node of this stage, run on the original; its compressed forms are scored with the same tokens.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aird.inference.generation import generate
from aird.inference.refusals import jailbroken_arditi
from aird.prompts.chat import chat_tokens, check_no_thoughts
from aird.prompts.sets import CLASSES, Record, select_instructions
from aird.settings.directions import Directions

logger = logging.getLogger(__name__)

# First words of common refusals, for a model that refuses nothing it is asked here.
FALLBACK_WORDS = ("I", "Sorry", "As")
PROMPTS = 64  # of each class: enough to see a token that begins one refusal in twenty
NEW_TOKENS = 16  # a refusal shows itself in its first words


def find_refusal_tokens(
    model: Any, tokenizer: Any, prompts: Mapping[str, Sequence[Record]], settings: Directions, seed: int
) -> dict[str, Any]:
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
    texts = {kind: [tokenizer.decode(ids) for ids in answers] for kind, answers in completions.items()}
    check_no_thoughts(tokenizer, [text for some in texts.values() for text in some])
    refused = [not jailbroken_arditi(text) for text in texts["harmful"]]
    return derive_refusal_tokens(tokenizer, completions["harmful"], refused, completions["harmless"])


def derive_refusal_tokens(
    tokenizer: Any,
    harmful_completions: Sequence[Sequence[int]],
    harmful_refused: Sequence[bool],
    harmless_completions: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Find the tokens that a model's own refusals begin with.

    A token counts if it begins at least 5% of the refusals, and begins refusals more often than
    it begins answers to harmless instructions. Fixed ids would be wrong for the next tokenizer.

    Args:
        tokenizer: the model's tokenizer.
        harmful_completions: token ids of completions of harmful instructions.
        harmful_refused: whether each of them is a refusal.
        harmless_completions: token ids of completions of harmless instructions.

    Returns:
        {"tokens": ids, "derived": bool, "refusals": n, "shares": [[id, text, share of refusals,
        share of harmless answers], ...]}. `derived` is False where fewer than five refusals were
        seen; then the tokens are those of `FALLBACK_WORDS`.
    """
    first = Counter(
        ids[0] for ids, refused in zip(harmful_completions, harmful_refused, strict=True) if refused and ids
    )
    refusals = sum(first.values())
    answers = Counter(ids[0] for ids in harmless_completions if ids)
    shares = [
        [token, tokenizer.decode([token]), count / refusals, answers[token] / max(1, sum(answers.values()))]
        for token, count in sorted(first.items(), key=lambda item: (-item[1], item[0]))
    ]
    tokens = [token for token, _, share, harmless_share in shares if share >= 0.05 and share > harmless_share]
    if refusals >= 5 and tokens:
        return {"tokens": tokens, "derived": True, "refusals": refusals, "shares": shares}
    logger.warning("only %d refusals were seen; using the tokens of %s", refusals, FALLBACK_WORDS)
    words = sorted({tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in FALLBACK_WORDS})
    return {"tokens": words, "derived": False, "refusals": refusals, "shares": shares}

"""The text of an answer is what the tokenizer makes of its tokens, or the served file is broken.

A GGUF file can name another kind of vocabulary than it holds. llama.cpp then reads prompts rightly, as these go out as
token ids, and writes every space as another character. No phrase of a refusal is found in such text, so a check would
tell of a loss that is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from aird.evaluation.engine import Client, ClientAround, Completion

INCOMPLETE = "\ufffd"  # stands for bytes that are no whole character
SHOWN = 3  # characters of an answer that an error may show: enough to see what is wrong, and no content


class BrokenTextError(ValueError):
    """An engine's text is not what its tokens mean: whatever a judge says of it means nothing."""


class CheckedClient(ClientAround):
    """A client whose every answer is checked (`check_text`)."""

    def __init__(self, client: Client, tokenizer: PreTrainedTokenizerBase, served: str) -> None:
        """Take the client, the checkpoint's tokenizer, and what errors call the checkpoint."""
        super().__init__(client)
        self._tokenizer, self._served = tokenizer, served

    def complete(
        self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, *, logprobs: int | None = None
    ) -> list[Completion]:
        """Complete each prompt greedily (`Client.complete`).

        Raises:
            BrokenTextError: the text of an answer is not what its tokens mean.
        """
        completions = self._client.complete(prompts, maximum_new_tokens, logprobs=logprobs)
        for completion in completions:
            check_text(self._tokenizer, completion, self.name, self._served)
        return completions


def check_text(tokenizer: PreTrainedTokenizerBase, completion: Completion, engine: str, served: str) -> None:
    """Check that a completion's text is what the tokenizer makes of its token ids.

    Special tokens count on neither side, nor does white space at the ends: of these, engines keep more or less. Behind
    bytes that are no whole character nothing is compared, as engines put those together in other ways.

    Raises:
        BrokenTextError: it is another text; the message shows where they part, and no more of the answer.
    """
    found = _comparable(tokenizer, completion.text)
    # Some tokenizers ask for spaces before punctuation to be taken away, which servers do not do; and bytes on both
    # sides of a special token may make one character.
    decoded = [
        str(tokenizer.decode(list(completion.token_ids), skip_special_tokens=skip, **more))
        for skip in (False, True)
        for more in ({"clean_up_tokenization_spaces": False}, {})
    ]
    if any(_agree(_comparable(tokenizer, text), found) for text in decoded):
        return
    expected = _comparable(tokenizer, decoded[0])
    place = next((i for i, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), None)
    place = min(len(expected), len(found)) if place is None else place
    wanted, got = (text[place : place + SHOWN] for text in (expected, found))
    raise BrokenTextError(
        f"{served}: this file is broken. {engine} writes {got!r} where the tokenizer's text of the same tokens has "
        f"{wanted!r} (character {place + 1} of an answer), so its answers cannot be judged. The file names another "
        "kind of vocabulary than it holds, or it holds another model's tokenizer; convert the model again"
    )


def _agree(expected: str, found: str) -> bool:
    known, incomplete, _ = expected.partition(INCOMPLETE)
    begun, cut, _ = found.partition(INCOMPLETE)
    if not incomplete and not cut:
        return expected == found
    known, begun = known.rstrip(), begun.rstrip()
    return begun.startswith(known) or known.startswith(begun)


def _comparable(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    for token in _added_tokens(tokenizer):
        text = text.replace(token, "")
    return text.strip()


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts of the tokens that no text is split into, the longest first."""
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    return sorted((token.content for token in added.values()), key=len, reverse=True)

"""Text corpora, and the token sequences of one that a compression is calibrated on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aird.prompts.sources import open_file
from aird.settings.compressions import CalibrationSettings
from aird.settings.prompt_files import read_texts
from aird.settings.prompts import Corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_corpus(settings: Corpus) -> list[str]:
    """Return the texts of a corpus, in the file's order.

    Raises:
        SourceError: the source cannot be fetched, or holds other bytes than the pinned ones.
        ValueError: the file cannot be read, or holds no text.
    """
    with open_file(settings.source) as path:
        return read_texts(path, settings)


def token_sequences(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: CalibrationSettings
) -> list[list[int]]:
    """Join texts in a drawn order, each with the end token behind it, and cut them into sequences of one length.

    A sequence begins with the start token where the tokenizer puts one before a text: some models, such as Gemma,
    have seen no text without it. It counts as one of the sequence's tokens.

    Args:
        texts: of the corpus.
        tokenizer: of the model.
        settings: the corpus's name, number and length of sequences, and the seed of the order.

    Returns:
        `sequences` lists of `length` token ids.

    Raises:
        ValueError: the tokenizer has no end token, or the texts give too few tokens.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token to put between texts; calibrate on a prompt set")
    assert settings.sequences is not None and settings.length is not None
    start = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
    taken = settings.length - len(start)
    tokens: list[int] = []
    for text in random.Random(settings.seed).sample(texts, len(texts)):
        tokens += [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], tokenizer.eos_token_id]
        if len(tokens) >= settings.sequences * taken:
            break
    else:
        raise ValueError(
            f"corpus {settings.corpus}: {settings.sequences} sequences of {settings.length} tokens asked for, but its "
            f"{len(texts)} texts hold {len(tokens)} tokens, enough for {len(tokens) // taken} sequences"
        )
    return [[*start, *tokens[first : first + taken]] for first in range(0, settings.sequences * taken, taken)]

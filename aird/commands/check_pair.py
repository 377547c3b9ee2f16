"""Whether a compressed model is the original in another form, so that their answers can be compared.

A broken file refuses less, too: it gets other tokens, never ends a reply, or computes with other scales. Such a file
is no regression. So both sides are compared here before one of them is asked, and what is broken is named.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from aird.commands.inputs import ModelFolder
from aird.models.checkpoint import Checkpoint, read_checkpoint
from aird.models.generation_settings import ends_of_text
from aird.models.gguf_file import read_gguf
from aird.models.gguf_tokenizer import is_default_model, own_ends, own_tokenizer, splits_as_known
from aird.models.loading import load_tokenizer, read_chat
from aird.models.matrices import matrix_of, matrix_shape
from aird.models.rescaling import common_factor
from aird.prompts.chat import chat_text, with_chat
from aird.prompts.sets import Record
from aird.settings.suites import Serving, Suite

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 24  # characters of a prompt's text that a message shows
OPTION = "--other-tokens"
# A factor of all weights of a matrix that no rounding makes: 2 bits shrink by a fifth.
LARGE, SMALL = 1.5, 0.6
ROWS = 256  # of a matrix that are compared
NORM = 0.01  # gains that differ by less are the original's, rounded
REPLY = "Blue, of course."  # stands for a reply where only what follows it counts


def check_pair(
    original: ModelFolder | None,
    compressed: ModelFolder | None,
    prompts: Mapping[str, Sequence[Record]],
    suite: Suite,
    other_tokens: bool,
) -> dict[str, str]:
    """Check that both sides can be asked the prompts, and that what they answer can be compared.

    1. Every prompt leaves room for its answer.
    2. Both make the same tokens of every prompt: chat template, vocabulary and the way text is split.
    3. The compressed one ends a reply where the original does.
    4. Its matrices are not a multiple of the original's.

    Args:
        original, compressed: the sides; None where answers are stored, and then only the other is checked, by 1.
        prompts: class to prompt records.
        suite: how they are asked.
        other_tokens: measure a model although it makes other tokens of the prompts.

    Returns:
        {"chat template": what to say} of a model that makes other tokens; else nothing.

    Raises:
        ValueError: names what is broken, and what to do.
    """
    from aird.evaluation.questions import Asked, check_lengths, suite_questions

    longest = suite.maximum_model_length or Serving().maximum_model_length
    for model in (each for each in (original, compressed) if each is not None):
        check_lengths(suite_questions(load_tokenizer(model.folder), Asked(suite, prompts, 0)), longest)
    if original is None or compressed is None or original.folder == compressed.folder:
        return {}
    tokenizers = load_tokenizer(original.folder), _its_tokenizer(compressed)
    difference = _first_difference(*tokenizers, prompts, suite)
    if difference is not None and not other_tokens:
        raise ValueError(
            f"{compressed.name}: its {difference}. A loss would not be that of its weights alone: copy the original's "
            f"files, convert a GGUF file again, or measure both together with {OPTION}"
        )
    _check_ends(original, compressed, tokenizers[0])
    _check_scales(original, compressed)
    return {} if difference is None else {"chat template": f"the compressed model's {difference}"}


def _its_tokenizer(model: ModelFolder) -> PreTrainedTokenizerBase:
    """Return a model's own tokenizer: of a GGUF file what the file says, as far as that is known."""
    if model.source.is_file():
        file = read_gguf(model.source)
        if splits_as_known(file) and not is_default_model(file):
            own = own_tokenizer(file)
            own.chat_template = load_tokenizer(model.folder).chat_template
            return with_chat(own, read_chat(model.folder))
    return load_tokenizer(model.folder)


def _first_difference(
    theirs: PreTrainedTokenizerBase,
    ours: PreTrainedTokenizerBase,
    prompts: Mapping[str, Sequence[Record]],
    suite: Suite,
) -> str | None:
    """Return in words where two models first make other tokens of a prompt; None where they never do."""
    sides = (theirs, ours)
    for record in itertools.chain.from_iterable(prompts.values()):
        texts = [chat_text(each, record["instruction"], think=suite.think) for each in sides]
        if texts[0] != texts[1]:
            place = _first_place(*texts)
            wanted, found = (text[place : place + SHOWN] for text in texts)
            return (
                f"chat template writes {found!r} where the original's writes {wanted!r} (character {place + 1} of a "
                "prompt)"
            )
        ids = [each(text, add_special_tokens=False)["input_ids"] for each, text in zip(sides, texts, strict=True)]
        if ids[0] != ids[1]:
            place = _first_place(*ids)
            named = [each.convert_ids_to_tokens(row[place : place + 3]) for each, row in zip(sides, ids, strict=True)]
            return (
                f"tokenizer makes the tokens {ids[1][place : place + 3]} ({' '.join(named[1])}) of a text of which the "
                f"original's makes {ids[0][place : place + 3]} ({' '.join(named[0])}): it is another model's, or it "
                "splits text in another way (pre-tokenizer, merges)"
            )
    return None


def _first_place(one: Sequence[object], other: Sequence[object]) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _check_ends(original: ModelFolder, compressed: ModelFolder, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the token behind a reply ends one, if it does so of the original.

    Raises:
        ValueError: replies of the compressed model would run to the limit.
    """
    instruction = "Name a colour."
    behind = chat_text(tokenizer, instruction, REPLY).rpartition(REPLY)[2]
    closing = set(tokenizer(behind, add_special_tokens=False)["input_ids"])
    theirs, ours = (_ends(model) for model in (original, compressed))
    if closing & theirs and not closing & ours:
        missing = ", ".join(f"{token} ({tokenizer.convert_ids_to_tokens(token)})" for token in sorted(closing & theirs))
        raise ValueError(
            f"{compressed.name}: its replies would run on to the limit: the token {missing}, which ends the "
            f"original's, is none of its end tokens ({sorted(ours) or 'it names none'}); write eos_token_id of the "
            "original into its generation_config.json, or convert a GGUF file again"
        )


def _ends(model: ModelFolder) -> set[int]:
    return set(own_ends(read_gguf(model.source)) if model.source.is_file() else ends_of_text(model.folder))


def _check_scales(original: ModelFolder, compressed: ModelFolder) -> None:
    """Check that no matrix is a multiple of the original's that nothing takes back.

    AWQ and SmoothQuant multiply one matrix and divide a norm or another matrix. So multiples count only where the norms
    are the original's and no other matrix is smaller in turn.

    Raises:
        ValueError: names the matrix and the factor.
    """
    theirs, ours = read_checkpoint(original.folder), read_checkpoint(compressed.folder)
    if not _same_norms(theirs, ours):
        return
    shared = set(theirs.block_matrices())
    factors: dict[str, float] = {}
    for module in (module for module in ours.block_matrices() if module in shared):
        if matrix_shape(theirs, module) == matrix_shape(ours, module):
            step = max(1, matrix_shape(ours, module)[0] // ROWS)
            factor = common_factor(matrix_of(theirs, module)[::step], matrix_of(ours, module)[::step])
            if factor is not None:
                factors[module] = factor
    large = [name for name, factor in factors.items() if factor > LARGE]
    small = [name for name, factor in factors.items() if factor < SMALL]
    if bool(large) == bool(small):
        return
    off = large or small
    raise ValueError(
        f"{compressed.name}: {len(off)} of {len(factors)} matrices that were compared are multiples of the original's "
        f"({off[0]}: {factors[off[0]]:.2f} times), and nothing takes that back, as its norms are the original's: its "
        "scales are stored wrongly; make the checkpoint again"
    )


def _same_norms(theirs: Checkpoint, ours: Checkpoint) -> bool:
    return all(
        name in ours.tensors
        and ours.tensors[name].shape == each.shape
        and bool((each.load().float() - ours.tensors[name].load().float()).abs().max() < NORM)
        for name, each in theirs.tensors.items()
        if len(each.shape) == 1 and "norm" in name
    )

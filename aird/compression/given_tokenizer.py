"""The tokenizer and chat settings of a ready-made checkpoint, beside those of its original."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from aird.models.gguf_file import GGUFFile
from aird.models.loading import code_is_trusted, copy_tokenizer, load_tokenizer, read_chat, write_chat
from aird.models.tokenizer_file import let_its_file_be_read, read_tokenizer
from aird.prompts.chat import check_chat, post_instruction_tokens, renders_alike, with_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PROBES = (
    "Please write a short letter to my neighbour, Mrs. O'Brien-Smith.",
    "def area(radius):\n    return 3.14159 * radius ** 2  # 1,234,567",
    "Sums:\n\n1. In 2024 it'LL cost  12345 dollars;\r\n\n\t 6 more.",  # where pre-tokenizers differ
    "Größe, façade, Привет, 你好，世界, こんにちは, مرحبا, 🙂",
)


def settle_tokenizer(folder: Path, original: Path) -> str:
    """Give a checkpoint the original's chat settings, and its tokenizer where it has none; return how its own compares.

    Raises:
        ValueError: it splits text otherwise than the original's, so that no position would mean the same.
    """
    theirs = load_tokenizer(original)
    write_chat(read_chat(original), folder)
    if not any(folder.glob("tokenizer*")):
        copy_tokenizer(original, folder)
        return "the original's, as the checkpoint brings none"
    let_its_file_be_read(folder, code_is_trusted())
    own = read_tokenizer(folder, code_is_trusted())
    for probe in PROBES:
        ids = [tokenizer(probe, add_special_tokens=False).input_ids for tokenizer in (own, theirs)]
        if ids[0] != ids[1]:
            raise ValueError(
                f"the checkpoint splits text into other tokens than {original} (for instance {probe[:24]!r}); name "
                "its own original as the model"
            )
    if own.chat_template is None:
        named = theirs.chat_template  # some models have several by name, of which conversations take "default"
        template = named["default"] if isinstance(named, dict) else named
        # A template in a file of its own goes before one in the configuration.
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        return "equal to the original's, whose chat template it got, as it brings none"
    check_chat(with_chat(own, read_chat(folder)))
    return f"equal to the original's{_another_template(own, theirs, original)}"


def gguf_tokenizer(file: GGUFFile, folder: Path, original: Path) -> str:
    """Give the checkpoint of a GGUF file the original's chat settings; return what its tokenizer is."""
    write_chat(read_chat(original), folder)
    own = load_tokenizer(folder)
    check_chat(own)
    taken = "the original's, as the file has its vocabulary"
    if file.chat_template is None:
        return f"{taken}; so is the chat template, as the file brings none"
    return f"{taken}{_another_template(own, load_tokenizer(original), original)}"


def _another_template(own: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, original: Path) -> str:
    """Return what there is to say of a checkpoint whose chat template writes prompts otherwise than the original's.

    Raises:
        ValueError: it puts another number of tokens behind an instruction.
    """
    if renders_alike(own, theirs):
        return ""
    ends = [len(post_instruction_tokens(tokenizer)) for tokenizer in (own, theirs)]
    if ends[0] != ends[1]:
        raise ValueError(
            f"its chat template puts {ends[0]} tokens behind an instruction, that of {original} {ends[1]}, "
            "so no position of a direction would mean the same; take the template out of the checkpoint, and it gets "
            "the original's"
        )
    logger.warning("the checkpoint has another chat template than the original: what is measured is both together")
    return ", but with another chat template"

"""The tokenizer of a GGUF file that is read without the model that it was made from.

That the byte-level ones are read rightly is proven by tests. How a SentencePiece one splits a text hangs on the scores
of its tokens, so llama.cpp is asked, on the file itself. Without llama.cpp the user names a folder with the tokenizer.
"""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from aird.evaluation.engine import Engine
from aird.prompts import embedded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from aird.models.gguf_file import GGUFFile

HELP = (
    "folder with the tokenizer of a GGUF file, such as the model that it was made from; needed for a SentencePiece "
    "vocabulary (Llama 2, Mistral, Gemma, Phi-3) where neither llama.cpp nor the original model is there"
)
INSTRUCTIONS = 60  # so many are split, by the chat template
# Where tokenizers differ: spaces, lines, characters without a token, texts of special tokens.
HARD = (
    *("", " ", "   leading spaces", "trailing  ", "two\n\nlines\r\n\tand a tab", "don't WE'LL", "1234567890 + 3.14"),
    *("e\u0301 \u00e9 Größe Привет 你好，世界", "🙂🙂 \u200d", "<s>[INST] <<SYS>> </s>", "▁ <0x0A>", "aaaaaaa   bbbb"),
)
_scratch: list[tempfile.TemporaryDirectory[str]] = []  # tokenizers live as long as the process


@dataclass(frozen=True)
class TokenizerSource:
    """Where the tokenizer of a GGUF file comes from.

    Attributes:
        folder: that the user named; None without.
        engine: one that serves GGUF files, and so can split text by them; None where there is none.
    """

    folder: Path | None = None
    engine: Engine | None = None

    def check(self, file: GGUFFile) -> None:
        """Check by its header that a file's tokenizer can be read, as far as no server is needed.

        Raises:
            ValueError: it cannot, or the named folder's has other tokens.
        """
        from aird.models.gguf_tokenizer import check_kind, check_vocabulary, is_sentencepiece

        if self.folder is not None:
            check_vocabulary(file, _read(self.folder), len(file.tokens), self.folder)
            return
        try:
            check_kind(file)
        except ValueError as error:
            raise ValueError(f"{error}; or name the folder of its tokenizer with --tokenizer") from None
        if is_sentencepiece(file) and self.engine is None:
            raise ValueError(
                f"{file.path} has a SentencePiece vocabulary; llama.cpp shows whether that is read rightly, and is not "
                "here: pip install xllamacpp, or name the folder of its tokenizer with --tokenizer, such as that of "
                "the model that it was made from"
            )

    def of(self, source: Path) -> Path | None:
        """Return the folder of a GGUF file's tokenizer; None where the file's own is read without one.

        Raises:
            ValueError: as of `check`; or llama.cpp splits a text otherwise.
            RuntimeError: llama.cpp cannot read the file.
        """
        from aird.models.gguf_file import read_gguf
        from aird.models.gguf_tokenizer import is_sentencepiece

        file = read_gguf(source)
        self.check(file)
        if self.folder is not None or self.engine is None or not is_sentencepiece(file):
            return self.folder
        return _proven(source, self.engine)


def _read(folder: Path) -> PreTrainedTokenizerBase:
    from aird.models.loading import code_is_trusted
    from aird.models.tokenizer_file import read_tokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = read_tokenizer(folder, code_is_trusted())
    except (OSError, ValueError) as error:
        raise ValueError(f"--tokenizer: {folder} holds no tokenizer that can be read: {error}") from error
    return tokenizer


@functools.cache
def _proven(source: Path, engine: Engine) -> Path:
    """Write the tokenizer of a SentencePiece file into a folder, and return that; once for each file.

    Raises:
        ValueError: the engine splits a text otherwise.
    """
    from aird.models.gguf_file import read_gguf
    from aird.models.gguf_tokenizer import own_tokenizer

    print(f"Comparing the tokenizer of {source.name} with that of {engine.title} ...", flush=True)
    made = own_tokenizer(read_gguf(source))
    _scratch.append(tempfile.TemporaryDirectory(prefix="aird-tokenizer-"))
    folder = Path(_scratch[-1].name)
    texts = _texts(made)
    for text, wanted in zip(texts, engine.split(source, texts, folder / "server.log"), strict=True):
        if made(text, add_special_tokens=False)["input_ids"] != wanted:
            raise ValueError(
                f"{source}: {engine.title} splits {text[:60]!r} into other tokens than are made of its vocabulary "
                "here, so it would be asked something else; name the folder of its tokenizer with --tokenizer, such as "
                "that of the model that it was made from"
            )
    made.save_pretrained(folder)
    return folder


def _texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return what is split to compare: hard texts, and everyday instructions in the model's chat template."""
    from aird.compression.given_tokenizer import PROBES
    from aird.prompts.chat import chat_text

    with embedded.HARMLESS.open(encoding="utf-8") as lines:
        instructions = [str(json.loads(line)["instruction"]) for line in islice(lines, INSTRUCTIONS)]
    return [*HARD, *PROBES, *(chat_text(tokenizer, text) for text in (*PROBES, *instructions))]

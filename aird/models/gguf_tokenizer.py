"""The tokenizer of a GGUF file, made of what the file says, so that it splits text as llama.cpp does.

Transformers makes one too, but by the architecture alone: other pre-tokenizers than GPT-2's, tokens that a user
defined, and the end of a text get lost. So what llama.cpp does is written here as data, and tests compare the two.
Whatever is not in the table is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aird.models.gguf_file import GGUFFile
from aird.models.tokenizer_file import tokenizer_state
from aird.support.files import sha256_of

# llama.cpp's numbers of kinds of tokens (`llama_token_type`). It looks for the first three as a whole in a text.
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
# By these names llama.cpp knows the end of a text or turn, of whatever kind a file says that they are.
ENDS = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>"),
    *("[EOT]", "[EOS]", "<｜end▁of▁sentence｜>", "<end_of_utterance>", "<turn|>", "<|eom_id|>", "<eos>"),
}
# It keeps the tokenizer that Transformers makes of it, with which the published results were measured: white space
# before digits is split as by GPT-2, and the token that starts a turn ends a text too.
DEFAULT_MODEL = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHAT_TO_DO = (
    "name the model that it was made from beside it (`recipe: given`; `aird check`, `compare` and `patch`), whose "
    "tokenizer is then taken, or take the model as a folder in Hugging Face format"
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreTokenizer:
    """How llama.cpp cuts text before it merges bytes.

    Attributes:
        patterns: regular expressions; each cuts what the ones before it left.
        ignore_merges: take a whole piece that is a token as it is.
        begins: whether a text begins with the token for that, where the file does not say.
        composes: whether a letter and its accent become one character first. llama.cpp does that of no model, but
            the makers of these do, and Transformers reads their models in no other way.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    begins: bool = False
    composes: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_LETTERS = (
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+"
    r"|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*"
)
_DIGIT_BY_DIGIT = PreTokenizer((r"\p{N}", _GPT2))
_LLAMA3 = PreTokenizer((_WORDS + r"|\p{N}{1,3}" + _REST,), ignore_merges=True, begins=True)
_QWEN2 = PreTokenizer((_WORDS + r"|\p{N}" + _REST,), composes=True)
# `tokenizer.ggml.pre` of byte-level BPE, as in llama.cpp's llama-vocab.cpp. A file without one gets "default".
PRE_TOKENIZERS = {
    "deepseek-r1-qwen": _QWEN2,
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "falcon3": _LLAMA3,
    "gpt-2": PreTokenizer((_GPT2,)),
    "lfm2": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "refact": _DIGIT_BY_DIGIT,
    "smaug-bpe": PreTokenizer(_LLAMA3.patterns),
    "smollm": _DIGIT_BY_DIGIT,
    "stablelm2": PreTokenizer(_QWEN2.patterns),
    "starcoder": _DIGIT_BY_DIGIT,
    "tekken": PreTokenizer((_LETTERS + r"|\p{N}" + _REST.replace(r"[\r\n]*|", r"[\r\n/]*|"),), True, True),
}


def splits_as_known(file: GGUFFile) -> bool:
    """Return whether a file's tokenizer is one that `own_tokenizer` makes."""
    return file.tokenizer.get("model") == "gpt2" and file.tokenizer.get("pre", "default") in PRE_TOKENIZERS


def own_tokenizer(file: GGUFFile) -> Any:
    """Return a Transformers tokenizer that splits text as llama.cpp does by a file's metadata, with its chat template.

    Raises:
        ValueError: it is of a kind that is not known here, or contradicts itself.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = _pre_tokenizer(file)
    said, tokens = file.tokenizer, file.tokens
    if len(set(tokens)) != len(tokens) or len(said.get("token_type", [])) != len(tokens):
        raise ValueError(f"{file.path} names a token twice, or not each one's kind (token_type); {WHAT_TO_DO}")
    try:
        merges = [tuple(merge.split(" ")) for merge in said.get("merges", [])]
        model = models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=known.ignore_merges)
        special = {
            f"{name}_token": tokens[said[f"{key}_token_id"]]
            for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
            if f"{key}_token_id" in said
        }
    except Exception as error:  # of tokenizers, whatever the merges lead to
        raise ValueError(f"{file.path} contradicts itself about its tokenizer ({error}); fetch it again") from error
    tokenizer = Tokenizer(model)
    if known.composes:
        tokenizer.normalizer = normalizers.NFC()
    pieces = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in known.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = [CONTROL if token in ENDS else kind for token, kind in zip(tokens, said["token_type"], strict=True)]
    whole = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if token]
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token, kind in whole if kind in (UNKNOWN, CONTROL)]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in whole if kind == USER_DEFINED])
    if said.get("add_bos_token", known.begins) and "bos_token" in special:
        begin = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, said["bos_token_id"])]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    fast.chat_template = file.chat_template
    return fast


def check_read_back(written: Any, made: Any, file: GGUFFile) -> None:
    """Check that Transformers reads a stored tokenizer as it was made; of some models it makes one of its own.

    Raises:
        ValueError: it does not.
    """
    if tokenizer_state(written.backend_tokenizer) != tokenizer_state(made.backend_tokenizer):
        raise ValueError(
            f"{file.path} asks for another tokenizer than {type(written).__name__}, which Transformers takes for every "
            f"model of its type; {WHAT_TO_DO}"
        )


def own_ends(file: GGUFFile) -> list[int]:
    """Return the tokens that end a text or a turn: those that a file names, and those that llama.cpp knows by name."""
    named = [
        file.tokenizer[f"{name}_token_id"] for name in ("eos", "eot", "eom") if f"{name}_token_id" in file.tokenizer
    ]
    return list(dict.fromkeys([*named, *(i for i, token in enumerate(file.tokens) if token in ENDS)]))


def is_default_model(file: GGUFFile) -> bool:
    """Return whether a file is the default model's, which keeps the tokenizer that Transformers makes of it."""
    return file.tokenizer.get("pre") == "smollm" and sha256_of(file.path) == DEFAULT_MODEL


def check_vocabulary(file: GGUFFile, tokenizer: PreTrainedTokenizerBase, rows: int, original: Path) -> None:
    """Check that a file's tokens are those of the model that it was made from, so that this one's tokenizer fits.

    Args:
        file: the GGUF file.
        tokenizer: the original's.
        rows: of the original's embedding; tokens beyond them cannot be used.
        original: its folder, for the message.

    Raises:
        ValueError: names the first token that differs.
    """
    own = file.tokens
    kinds = file.tokenizer.get("token_type", [])
    theirs: list[str | None] = [None] * max(len(own), min(rows, len(tokenizer)))
    for token, number in tokenizer.get_vocab().items():
        if number < min(rows, len(theirs)):
            theirs[number] = token
    for number, wanted in enumerate(theirs):
        found = own[number] if number < len(own) else None
        if found is None or wanted is None:  # rows without a token, such as those at the end, which a file names
            same = wanted is None and (
                found is None
                or kinds[number : number + 1] == [UNUSED]
                or re.fullmatch(r"\[PAD\d+\]", found) is not None
            )
        else:  # the converter writes spaces into tokens of SentencePiece that a user defined
            same = found.replace(" ", "▁") == wanted.replace(" ", "▁")
        if not same:
            ours, others = ("absent" if token is None else repr(token) for token in (found, wanted))
            raise ValueError(
                f"{file.path} has another vocabulary than {original}: its token {number} is {ours}, the original's is "
                f"{others}; name the file's own original as the model"
            )


def _pre_tokenizer(file: GGUFFile) -> PreTokenizer:
    """Return how a file's text is cut.

    Raises:
        ValueError: it is not known here.
    """
    model, name = file.tokenizer.get("model"), file.tokenizer.get("pre", "default")
    if model == "gpt2" and name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    said = f"the tokenizer {model}" + (f" with the pre-tokenizer {name}" if model == "gpt2" else "")
    raise ValueError(
        f"{file.path} asks for {said}, and that this splits text as llama.cpp does is proven here only of gpt2 with "
        f"{', '.join(sorted(PRE_TOKENIZERS))}; {WHAT_TO_DO}"
    )

"""The tokenizer of a GGUF file, made of what the file says, so that it splits text as llama.cpp does.

Transformers makes one too, but by the architecture alone: other pre-tokenizers than GPT-2's, tokens that a user
defined, and the end of a text get lost; of SentencePiece files it takes the start of a text for its end. So what
llama.cpp does is written here as data, and tests compare the two. Whatever is not in the table is refused.

Byte-level BPE (`gpt2`) is proven by these tests. How SentencePiece's BPE (`llama`: Llama 2, Mistral, Gemma, Phi-3)
splits a text hangs on a file's scores, so the commands compare it with llama.cpp on the file itself
(`aird.commands.gguf_tokenizers`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aird.models.gguf_file import GGUFFile
from aird.models.tokenizer_file import tokenizer_state
from aird.support.files import sha256_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

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
    "name the model that it was made from, a folder in Hugging Face format, as its original, whose tokenizer is then "
    "taken, or take that model itself"
)
SENTENCEPIECE = "llama"  # `tokenizer.ggml.model` of SentencePiece's BPE
SPACE = "▁"  # stands for a space in its tokens
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # its tokens for what no other token holds
# Where a file does not say them, llama.cpp takes these numbers.
ORDINARY = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
# By a model's name llama.cpp knows those whose special tokens swallow the white space behind them, but for three.
SWALLOWING, NOT_SWALLOWING = ("phi-3", "phi3"), ("<unk>", "<s>", "<|endoftext|>")

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


def own_tokenizer(file: GGUFFile) -> PreTrainedTokenizerFast:
    """Return a Transformers tokenizer that splits text as llama.cpp does by a file's metadata, with its chat template.

    Raises:
        ValueError: it is of a kind that is not known here, or contradicts itself.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    by_scores = is_sentencepiece(file)
    known = PreTokenizer((), begins=True) if by_scores else _pre_tokenizer(file)
    tokens = file.tokens
    said = {**(ORDINARY if by_scores else {}), **file.tokenizer}
    if len(set(tokens)) != len(tokens) or len(said.get("token_type", [])) != len(tokens):
        raise ValueError(f"{file.path} names a token twice, or not each one's kind (token_type); {WHAT_TO_DO}")
    check_kind(file)
    try:
        tokenizer = _sentencepiece(file) if by_scores else _byte_level(file, known)
        special = {
            f"{name}_token": tokens[said[f"{key}_token_id"]]
            for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
            if f"{key}_token_id" in said
        }
    except Exception as error:  # of tokenizers, whatever the merges lead to
        raise ValueError(f"{file.path} contradicts itself about its tokenizer ({error}); fetch it again") from error
    swallows = by_scores and any(name in file.name.lower() for name in SWALLOWING)
    kinds = [CONTROL if token in ENDS else kind for token, kind in zip(tokens, said["token_type"], strict=True)]
    whole = [
        (AddedToken(token, normalized=False, rstrip=swallows and token not in NOT_SWALLOWING), kind)
        for token, kind in zip(tokens, kinds, strict=True)
        if token
    ]
    tokenizer.add_special_tokens([token for token, kind in whole if kind in (UNKNOWN, CONTROL)])
    tokenizer.add_tokens([token for token, kind in whole if kind == USER_DEFINED])
    if said.get("add_bos_token", known.begins) and "bos_token" in special:
        begin = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, said["bos_token_id"])]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    fast.chat_template = file.chat_template
    return fast


def is_sentencepiece(file: GGUFFile) -> bool:
    """Return whether a file holds SentencePiece's BPE, of which only llama.cpp can show that it is read rightly."""
    return file.tokenizer.get("model") == SENTENCEPIECE


def check_kind(file: GGUFFile) -> None:
    """Check that a file's tokenizer is of a kind that is known here, and complete.

    Raises:
        ValueError: it is not.
    """
    if is_sentencepiece(file):
        _check_sentencepiece(file)
    else:
        _pre_tokenizer(file)


def _byte_level(file: GGUFFile, known: PreTokenizer) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = [tuple(merge.split(" ")) for merge in file.tokenizer.get("merges", [])]
    numbers = {token: number for number, token in enumerate(file.tokens)}
    tokenizer = Tokenizer(models.BPE(numbers, merges, ignore_merges=known.ignore_merges))
    if known.composes:
        tokenizer.normalizer = normalizers.NFC()
    pieces = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in known.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _check_sentencepiece(file: GGUFFile) -> None:
    """Check that every token has a score, and every byte a token.

    Raises:
        ValueError: one does not.
    """
    tokens, scores = set(file.tokens), file.tokenizer.get("scores", [])
    if len(scores) != len(file.tokens):
        raise ValueError(
            f"{file.path} has {len(scores)} scores of its {len(file.tokens)} tokens (tokenizer.ggml.scores), so which "
            "characters make a token is unknown; convert the model again"
        )
    if missing := [token for token in BYTES if token not in tokens]:
        raise ValueError(
            f"{file.path} has no token for {len(missing)} of the 256 bytes (the first is {missing[0]}), so not every "
            "text can be written with its tokens, and llama.cpp ends at one that cannot; convert the model again"
        )


def _sentencepiece(file: GGUFFile) -> Tokenizer:
    """Return SentencePiece's BPE: of two neighbours that make a token, those with the highest score merge first.

    llama.cpp puts a space before a text, and before what follows a special token, unless the file says that it does
    not. Bytes stand for characters that no token holds.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, scores = file.tokens, file.tokenizer["scores"]
    numbers = {token: number for number, token in enumerate(tokens)}
    ranked = sorted(range(len(tokens)), key=lambda number: -scores[number])
    merges = [
        (left, right)
        for token in (tokens[number] for number in ranked)
        for left, right in ((token[:place], token[place:]) for place in range(1, len(token)))
        if left in numbers and right in numbers
    ]
    tokenizer = Tokenizer(models.BPE(numbers, merges, byte_fallback=True))
    prefixed = bool(file.tokenizer.get("add_space_prefix", True))
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(SPACE)] if prefixed else []), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", left=1)] if prefixed else []),
        ]
    )
    return tokenizer


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
                f"{others}; name the model that the file was made from"
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

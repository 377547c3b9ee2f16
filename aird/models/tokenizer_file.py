"""A checkpoint's tokenizer as its tokenizer.json says it, by whatever class Transformers reads it.

Of some classes (LlamaTokenizer, GPT2Tokenizer, Qwen2Tokenizer) Transformers takes the vocabulary alone from the file
and makes the rest anew, so a byte-level file under the name LlamaTokenizerFast (DeepSeek-R1's Llama distills) loses
every space and new line. Servers and lm-eval read the folder by Transformers too, so the folder itself is put right.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aird.support.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
BY_THE_FILE = "PreTrainedTokenizerFast"  # the class that takes all from the file
PARTS = ("normalizer", "pre_tokenizer", "decoder", "model")


def read_tokenizer(checkpoint: Path, trust_remote_code: bool) -> Any:
    """Return the tokenizer of a checkpoint folder as Transformers reads it.

    Raises:
        ValueError: Transformers makes another one than the folder's tokenizer.json says.
    """
    tokenizer = _by_transformers(checkpoint, trust_remote_code)
    if _differs(tokenizer, checkpoint):
        raise ValueError(
            f"{checkpoint}: Transformers reads another tokenizer ({type(tokenizer).__name__}) than {FILE} says, so "
            f"text would be split or written otherwise; write tokenizer_class: {BY_THE_FILE} into {SETTINGS}"
        )
    return tokenizer


def is_read_by_its_file(checkpoint: Path, trust_remote_code: bool) -> bool:
    """Return whether Transformers reads the tokenizer of a checkpoint folder as its tokenizer.json says."""
    return not _differs(_by_transformers(checkpoint, trust_remote_code), checkpoint)


def let_its_file_be_read(checkpoint: Path, trust_remote_code: bool) -> None:
    """Let everybody read a checkpoint's tokenizer as its tokenizer.json says, by the class in tokenizer_config.json.

    Most folders stay as they are.

    Args:
        checkpoint: a folder of this project's own; the user's stay as they are.
        trust_remote_code: let a tokenizer's own code run, which is then taken as it is.

    Raises:
        ValueError: Transformers takes another tokenizer whatever the folder says, as it does for some types of models.
    """
    if is_read_by_its_file(checkpoint, trust_remote_code):
        return
    path = checkpoint / SETTINGS
    settings = read_json(path) if path.is_file() else {}
    write_json(path, {**settings, "tokenizer_class": BY_THE_FILE})
    tokenizer = _by_transformers(checkpoint, trust_remote_code)
    if _differs(tokenizer, checkpoint):
        raise ValueError(
            f"{FILE} of this model says another tokenizer than {type(tokenizer).__name__}, which Transformers takes "
            "for every model of its type, so text would be split otherwise; take a model whose tokenizer is its type's "
            "own"
        )


def tokenizer_state(backend: Any) -> dict[str, Any]:
    """Return what decides how a tokenizer of the package `tokenizers` splits and writes text.

    What has no effect is left out: offsets, the arguments of a byte-level decoder, empty affixes.

    Returns:
        Each of PARTS, and `added_tokens`, each as [id, text, whether it is special].
    """
    state = json.loads(backend.to_str())
    model = state["model"]
    names = ("type", "vocab", "merges", "ignore_merges", "byte_fallback")
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    state["model"] = {
        **{name: model.get(name) for name in names},
        **{name: model.get(name) or None for name in affixes},
    }
    return {
        **{part: _effective(state[part], part) for part in PARTS},
        "added_tokens": [[token["id"], token["content"], token["special"]] for token in state["added_tokens"]],
    }


def _effective(part: Any, name: str) -> Any:
    if isinstance(part, list):
        return [_effective(each, name) for each in part]
    if not isinstance(part, dict) or name == "model":
        return part
    if name == "decoder" and part.get("type") == "ByteLevel":
        return {"type": "ByteLevel"}
    return {key: _effective(value, name) for key, value in part.items() if key != "trim_offsets"}


def _by_transformers(checkpoint: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(checkpoint), trust_remote_code=trust_remote_code)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{checkpoint} holds a file of its tokenizer that is no JSON ({error}); fetch it again"
        ) from error


def _differs(tokenizer: PreTrainedTokenizerBase, checkpoint: Path) -> bool:
    """Return whether a class of one family of models made another tokenizer than the checkpoint's tokenizer.json says.

    Special tokens that only tokenizer_config.json names are no difference.
    """
    path = checkpoint / FILE
    # A class of a model's own code is taken as it is: that code is trusted, or it did not run.
    made_anew = type(tokenizer).__module__.startswith("transformers.models.")
    if not made_anew or not path.is_file() or not hasattr(tokenizer, "backend_tokenizer"):
        return False
    from tokenizers import Tokenizer

    backends = (tokenizer.backend_tokenizer, Tokenizer.from_file(str(path)))
    if backends[0].to_str() == backends[1].to_str():  # most are, and reading a large vocabulary as JSON takes a second
        return False
    made, said = (tokenizer_state(each) for each in backends)
    added = [{(number, text) for number, text, _ in state.pop("added_tokens")} for state in (made, said)]
    return made != said or not added[1] <= added[0]

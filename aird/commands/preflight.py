"""What can be said of a model before it is opened: from its headers alone, in a second or two.

    examined = examine("my-4bit-model")
    examined.weights, examined.stored_bytes

A wrong path, a format that is not read, a missing package, tokenizer or chat template, and a vocabulary that does not
fit the weights are found here, and not after the other model was asked for minutes.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from aird.commands.gguf_tokenizers import TokenizerSource
from aird.evaluation.engine import Engine
from aird.models.refusals import checkpoint_refusal
from aird.settings.sources import read_hub_name
from aird.support.files import read_json
from aird.support.gpus import visible_gpus

# One of these sets of files is a tokenizer.
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("tekken.json",), ("vocab.txt",))
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
# Stored bits of one weight in GGUF's types vary; a decoded copy has two bytes a weight.
DECODED_BYTES = 2
# For an estimate in minutes. A core gets so many operations a second out of batches of prompts, a GPU so many.
PER_CORE, PER_GPU = 60e9, 100e12
PROMPT_TOKENS = 60  # of a templated prompt
GB = 1e9


@dataclass(frozen=True)
class Examined:
    """What the headers of a model say.

    Attributes:
        name: what the user called it.
        weights: how many it has; None of a model on a hub that is not here yet.
        stored_bytes: of its weights, as they are stored.
        decoded_bytes: of a copy that has to be written before it can be read; 0 where it is read as it is.
        vocabulary: rows of its embedding; None where the headers do not show it.
        tensors: names of a folder's tensors.
        norms: the names of those that hold norms.
    """

    name: str
    weights: int | None
    stored_bytes: int
    decoded_bytes: int
    vocabulary: int | None
    tensors: frozenset[str] = frozenset()
    norms: frozenset[str] = frozenset()


def examine(text: str, asked: bool = True, tokenizer: TokenizerSource | None = None) -> Examined:
    """Check what a user named as a model, by headers alone.

    Args:
        text: a folder in Hugging Face format, a GGUF file or a hub id.
        asked: whether it is to answer prompts, which takes a tokenizer and a chat template.
        tokenizer: where the tokenizer of a GGUF file comes from; None where its original's is taken.

    Raises:
        ValueError: it is none of these, of a format that is not read, lacks a package, a tokenizer or a chat template,
            or its weights do not fit its vocabulary.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return _examine_folder(text, path, asked)
    if path.is_file():
        return _examine_gguf(text, path, asked, tokenizer)
    if read_hub_name(text) is None:
        raise ValueError(
            f"{text} is no folder and no file; name a model folder in Hugging Face format (config.json, "
            "*.safetensors, tokenizer), a GGUF file, or a hub id such as Qwen/Qwen2.5-7B-Instruct"
        )
    return Examined(text, None, 0, 0, None)


def _examine_folder(text: str, folder: Path, asked: bool) -> Examined:
    from aird.models.checkpoint import read_checkpoint
    from aird.models.format import format_of
    from aird.models.importing import check_folder_format

    check_folder_format(folder)
    checkpoint = read_checkpoint(folder)
    if reason := checkpoint_refusal(checkpoint.config):
        raise ValueError(f"{text} {reason}")
    form = format_of(checkpoint.quantization_config)
    if form is not None and form.package is not None and importlib.util.find_spec(form.package) is None:
        raise ValueError(
            f"{text} is stored in a format of which the package {form.package} is not installed; pip install "
            f"'aird[{form.package}]'"
        )
    if asked:
        _check_tokenizer(text, folder)
    embedding = next((each for name, each in checkpoint.tensors.items() if name.endswith(EMBEDDINGS)), None)
    rows = None if embedding is None else embedding.shape[0]
    wanted = checkpoint.config.get("text_config", checkpoint.config).get("vocab_size")
    if rows is not None and isinstance(wanted, int) and rows != wanted:
        raise ValueError(
            f"{text}: {embedding.name if embedding else ''} has {rows} rows, and its config.json says a vocabulary of "
            f"{wanted} (vocab_size); one of the two files is another model's: fetch both again, from one place"
        )
    if asked and rows is not None:
        _check_numbers(text, folder, rows)
    weights = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    stored = sum(tensor.size for tensor in checkpoint.tensors.values())
    norms = {name for name, each in checkpoint.tensors.items() if len(each.shape) == 1 and "norm" in name}
    return Examined(text, weights, stored, 0, rows, frozenset(checkpoint.tensors), frozenset(norms))


def check_norms(original: Examined, compressed: Examined) -> None:
    """Check that no norm of the original is missing from a compressed folder, in a module that this has.

    Raises:
        ValueError: names the first that is.
    """
    for name in sorted(original.norms - compressed.tensors):
        module = name.rsplit(".", 2)[0] + "."  # a pruned block, or another naming, lacks all of it
        if any(other.startswith(module) for other in compressed.tensors):
            raise ValueError(
                f"{compressed.name} lacks the tensor {name}, which {original.name} has; fetch it again, or take a "
                "complete checkpoint"
            )


def _check_tokenizer(text: str, folder: Path) -> None:
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        looked_for = ", ".join(" and ".join(names) for names in TOKENIZERS)
        raise ValueError(
            f"{text} holds no tokenizer (looked for {looked_for}); copy the tokenizer's files of the model that it was "
            "made from into the folder"
        )
    settings: Any = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    templates = [*folder.glob("chat_template.*"), *folder.glob("additional_chat_templates/*")]
    if not templates and not (isinstance(settings, dict) and settings.get("chat_template")):
        raise ValueError(
            f"{text} has no chat template (chat_template.jinja, or `chat_template` in tokenizer_config.json), so it is "
            "no chat model, or its template was lost: copy that of the model that it was made from"
        )


def _check_numbers(text: str, folder: Path, rows: int) -> None:
    """Check that the tokenizer makes no token that the embedding has no row for."""
    if not (folder / "tokenizer.json").is_file():
        return
    try:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = tokenizer["model"]["vocab"]
        numbers = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
        highest = max([*numbers, *(each["id"] for each in tokenizer.get("added_tokens", []))])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{text}: tokenizer.json cannot be read ({error}); fetch it again") from error
    if highest >= rows:
        raise ValueError(
            f"{text}: its tokenizer has tokens up to number {highest}, and its embedding has {rows} rows; the "
            "tokenizer is another model's: copy that of the model that it was made from"
        )


def _examine_gguf(text: str, path: Path, asked: bool, tokenizer: TokenizerSource | None) -> Examined:
    if path.suffix in (".safetensors", ".bin", ".json"):
        raise ValueError(f"{text} is one file of a model; name its folder, {path.absolute().parent}")
    from aird.models.gguf_file import read_gguf

    file = read_gguf(path)
    if asked and file.chat_template is None:
        raise ValueError(
            f"{text} holds no chat template (tokenizer.chat_template), so it is no chat model, or its converter lost "
            "it; convert the model again"
        )
    pieces, bytes_ = (sum(token.startswith(space) for token in file.tokens) for space in "▁Ġ")
    if file.tokenizer.get("model") == "llama" and bytes_ > pieces:
        raise ValueError(
            f"{text}: this file is broken. It names a SentencePiece vocabulary (tokenizer.ggml.model is llama), and "
            "its tokens are byte-level (spaces are written Ġ), so llama.cpp reads and writes other text than the "
            "model's; convert the model again"
        )
    if tokenizer is not None:
        tokenizer.check(file)
    weights = sum(tensor.count for tensor in file.tensors.values())
    stored = sum(tensor.size for tensor in file.tensors.values())
    return Examined(text, weights, stored, DECODED_BYTES * weights, len(file.tokens))


def check_room(models: Sequence[Examined]) -> None:
    """Check that memory holds each model, one at a time, and the temporary folder what is decoded.

    Raises:
        ValueError: there is less.
    """
    decoded = sum(each.decoded_bytes for each in models)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if decoded > free:
        raise ValueError(
            f"decoded copies take {decoded / GB:.1f} GB, and the temporary folder {folder} has {free / GB:.1f} GB "
            "free; let TMPDIR name another folder"
        )
    if visible_gpus():
        return
    needed = max((DECODED_BYTES * (each.weights or 0) for each in models), default=0)
    memory = psutil.virtual_memory().available
    if needed > memory:
        raise ValueError(
            f"the larger of the models takes {needed / GB:.1f} GB of memory, and {memory / GB:.1f} GB are free here; "
            "end other programs, or use a larger machine"
        )


def estimate(models: Sequence[Examined], prompts: int, tokens: int, engines: Sequence[Engine]) -> str:
    """Return in words what it takes to ask models prompts.

    Args:
        models: those that are asked.
        prompts: how many each is asked.
        tokens: the most that it writes for each.
        engines: who answers for each.
    """
    names = dict.fromkeys(engine.describe().partition(" (")[0] for engine in engines)
    told = f"{len(models)} x {prompts} prompts by {' and '.join(names)}"
    known = [each.weights for each in models if each.weights is not None]
    if not known:
        return told
    speed = PER_GPU * len(visible_gpus()) or PER_CORE * len(psutil.Process().cpu_affinity() or [1])
    operations = sum(2 * weights * prompts * (PROMPT_TOKENS + tokens) for weights in known)
    seconds = operations / speed + sum(engine.seconds for engine in engines)
    return f"{told}, about {max(1, round(seconds / 60))} min and {DECODED_BYTES * max(known) / GB:.1f} GB of memory"

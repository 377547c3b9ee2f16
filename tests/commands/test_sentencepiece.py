"""GGUF files with a SentencePiece vocabulary: split as llama.cpp does, proven on the file itself, or refused."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import ready_made
import torch
from gguf_vocabularies import CHARACTERS, EVERYDAY, SENTENCES, sentencepiece_vocabulary
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, Phi3Config

from aird import api
from aird.commands.gguf_tokenizers import TokenizerSource
from aird.commands.inputs import open_model_folder
from aird.commands.main import main
from aird.evaluation.engine import ServerSettings
from aird.evaluation.engines.llama_cpp import LlamaCpp
from aird.evaluation.parity import check_parity, first_token_logprobs
from aird.models.generation_settings import ends_of_text
from aird.models.gguf_file import read_gguf
from aird.models.gguf_tokenizer import BYTES, own_tokenizer
from aird.models.loading import load_model, load_tokenizer
from aird.prompts.chat import chat_text, chat_tokens
from aird.support.files import read_json_lines

PIECES = ("<s>", "</s>", "<unk>", "<|user|>", "<|end|>", "<think>", "<0x0A>", "▁", " ", "\n", "aaa", "The", "ing")
# What the file says besides its tokens, and what is written by its header's writer.
KINDS: dict[str, Mapping[str, Any]] = {
    "llama": {},
    "no prefix": {"add_space_prefix": False},
    "phi-3": {"also": lambda writer: writer.add_name("Phi-3 Mini")},
    "no numbers": {"bos_token_id": None, "eos_token_id": None},
}
FAMILIES: Mapping[str, Any] = {"gemma2": Gemma2Config, "gemma3": Gemma3TextConfig}
SIZES: Mapping[str, Any] = {
    **{"vocab_size": 414, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512},
}
ASKED = ("--count", "8", "--tokens", "3")


@pytest.fixture(scope="module")
def write(original: Path) -> Callable[..., Path]:
    """Return a function that writes the tiny model with a SentencePiece vocabulary, changed where that is said."""

    def write(path: Path, type_: str = "Q8_0", **changes: Any) -> Path:
        ready_made.gguf_file(original, path, [type_], **{**sentencepiece_vocabulary(), **changes})
        return path

    return write


@pytest.fixture
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no engine for GGUF files be found: neither by a variable, nor as the workflow's environment."""
    monkeypatch.delenv("AIRD_LLAMA_CPP_PYTHON", raising=False)
    monkeypatch.setattr("aird.commands.evaluate.PACKAGES", tmp_path)


def texts() -> list[str]:
    """Return sentences, instructions, and random texts of what tokenizers treat differently."""
    chooser = random.Random(0)
    pieces = [*CHARACTERS, *PIECES]
    mixed = ("".join(chooser.choices(pieces, k=chooser.randrange(1, 40))) for _ in range(250))
    return ["", " ", "  leading", *SENTENCES, *EVERYDAY[:50], *mixed]


def swallowed_by_transformers_alone(text: str) -> bool:
    """Return whether white space beyond ASCII may stand behind a special token: llama.cpp keeps that of Phi-3."""
    return any(character.isspace() and ord(character) > 127 for character in text)


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_split_as_by_llama_cpp(
    kind: str, write: Callable[..., Path], tmp_path: Path, llama_cpp_python: Path
) -> None:
    path = write(tmp_path / "a.gguf", **KINDS[kind])
    asked = [text for text in texts() if kind != "phi-3" or not swallowed_by_transformers_alone(text)]
    tokenizer = own_tokenizer(read_gguf(path))
    found = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked]
    assert found == LlamaCpp(llama_cpp_python).split(path, asked, tmp_path / "log") and len(asked) > 100
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


@pytest.mark.parametrize("kind", ["llama", "no prefix"])
def test_what_is_split_becomes_the_same_text(kind: str, write: Callable[..., Path], tmp_path: Path) -> None:
    tokenizer = own_tokenizer(read_gguf(write(tmp_path / "a.gguf", **KINDS[kind])))
    for text in (*SENTENCES, *EVERYDAY[:50], "🙂 \n\n  x\t" + unicodedata.normalize("NFD", "é")):
        # Behind a special token llama.cpp puts a space.
        plain = text.replace("<think>", "").replace("</think>", "")
        assert tokenizer.decode(tokenizer(plain, add_special_tokens=False)["input_ids"]) == plain
    first = tokenizer.convert_ids_to_tokens(tokenizer("<|user|>Go", add_special_tokens=False)["input_ids"])
    assert first[0] == "<|user|>" and first[1].startswith("▁") == (kind == "llama")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "has 0 scores of its 414 tokens (tokenizer.ggml.scores)"),
        ({"tokens": {"<0x0A>": "odd", "<0xF0>": "odder"}}, "no token for 2 of the 256 bytes (the first is <0x0A>)"),
        ({"chat_template": None}, "holds no chat template"),
        ({}, "pip install xllamacpp, or name the folder of its tokenizer with --tokenizer"),
    ],
)
@pytest.mark.usefixtures("without_llama_cpp")
def test_a_file_that_cannot_be_read_is_refused_by_its_header(
    changes: dict[str, Any],
    message: str,
    write: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if isinstance(other := changes.get("tokens"), dict):
        changes = {"tokens": [other.get(token, token) for token in sentencepiece_vocabulary()["tokens"]]}
    path = write(tmp_path / "a.gguf", **changes)
    assert main(["check", str(path), str(write(tmp_path / "b.gguf", "Q4_0")), *ASKED]) == 2
    told = capsys.readouterr()
    assert "a.gguf" in told.err and message in told.err and "recipe" not in told.err
    assert "Reading" not in told.out and set(BYTES) <= set(sentencepiece_vocabulary()["tokens"])


def test_scores_that_do_not_say_which_tokens_merge_first(
    write: Callable[..., Path], tmp_path: Path, llama_cpp_python: Path
) -> None:
    path = write(tmp_path / "a.gguf", scores=[0.0] * 414)
    with pytest.raises(ValueError, match=r"a.gguf: llama.cpp splits .* into other tokens .*--tokenizer"):
        open_model_folder(str(path), False, tokenizer=TokenizerSource(engine=LlamaCpp(llama_cpp_python)))


def test_a_pair_is_checked_by_llama_cpp(
    write: Callable[..., Path], tmp_path: Path, llama_cpp_python: Path, prompt_files: list[str]
) -> None:
    pair = [str(write(tmp_path / f"{kind}.gguf", kind)) for kind in ("Q8_0", "Q4_0")]
    output = tmp_path / "kept"
    options = ["--llama-cpp", str(llama_cpp_python), "--output", str(output)]
    assert main(["check", *pair, *prompt_files, *ASKED, *options]) == 4  # a random model refuses nothing
    for side in ("original", "compressed"):
        rows = read_json_lines(output / side / "completions.jsonl")
        assert (
            len(rows) == 16 and rows[0]["parity"]["same_first_token"] > 0 and rows[0]["engine"]["name"] == "llama.cpp"
        )


@pytest.mark.usefixtures("without_llama_cpp")
def test_a_pair_is_checked_with_the_tokenizer_that_is_named(
    write: Callable[..., Path],
    original: Path,
    tmp_path: Path,
    prompt_files: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair = [write(tmp_path / f"{kind}.gguf", kind) for kind in ("Q8_0", "Q4_0")]
    made = own_tokenizer(read_gguf(pair[0]))
    made.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer/chat_template.jinja").unlink()  # the file's own counts
    files = dict(zip(("harmful", "harmless"), prompt_files[1::2], strict=True))
    checked = api.check(*pair, tokenizer=str(tmp_path / "tokenizer"), transformers=True, count=8, tokens=3, **files)
    assert checked.outcome == "not measured"
    opened = open_model_folder(str(pair[0]), False, tokenizer=TokenizerSource(tmp_path / "tokenizer"))
    tokenizer = load_tokenizer(opened.folder)
    assert tokenizer(SENTENCES[1])["input_ids"] == made(SENTENCES[1])["input_ids"]
    assert chat_text(tokenizer, "Hi") == "<s><|user|>\nHi<|end|>\n<|assistant|>\n"
    assert ends_of_text(opened.folder)[0] == 2
    capsys.readouterr()
    for models, tokenizer_folder, message in (
        (pair, original, "has another vocabulary than"),
        (pair, tmp_path, "holds no tokenizer that can be read"),
        ([original, original], original, "--tokenizer: it is of a GGUF file"),
    ):
        asked = [*map(str, models), "--tokenizer", str(tokenizer_folder), "--transformers", *prompt_files, *ASKED]
        assert main(["check", *asked]) == 2
        assert message in capsys.readouterr().err


def write_family(path: Path, family: str, width: int) -> Path:
    """Write a model of random weights, of eight blocks with heads of so many features, as llama.cpp's converter does."""
    says, sizes = sentencepiece_vocabulary(), {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **SIZES}
    gemma = {"head_dim": width, "query_pre_attn_scalar": 256, "sliding_window": 32}
    config = Phi3Config(**sizes) if family == "phi3" else FAMILIES[family](**sizes, **gemma)
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    writer = gguf.GGUFWriter(path, family)
    writer.add_name("Phi-3" if family == "phi3" else family)
    writer.add_block_count(8)
    writer.add_context_length(512)
    writer.add_embedding_length(128)
    writer.add_feed_forward_length(256)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e6 if family == "gemma3" else 1e4)
    if family == "phi3":
        writer.add_rope_dimension_count(64)
    else:
        writer.add_key_length(width)
        writer.add_value_length(width)
        writer.add_sliding_window(32)
        writer.add_add_space_prefix(False)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(says["tokens"])
    writer.add_token_types(says["token_type"])
    writer.add_token_scores(says["scores"])
    writer.add_pad_token_id(0)
    writer.add_chat_template(says["chat_template"])
    names = gguf.get_tensor_name_map(architecture, 8)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items():
        if name != "lm_head.weight" or family == "phi3":  # Gemma's is the embedding
            norm = 1.0 if name.endswith("norm.weight") else 0.0
            values = norm + 0.1 * torch.randn(tensor.shape, generator=generator)
            if values.shape[0] == len(says["tokens"]):
                # A reply that begins with a part of a character, of which llama.cpp tells no probability, is rare.
                values[[says["tokens"].index(token) for token in BYTES]] *= 0.1
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values.numpy())
    ready_made.close(writer)
    return path


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "phi3"])
def test_the_families_compute_what_llama_cpp_computes(family: str, tmp_path: Path, llama_cpp_python: Path) -> None:
    engine = LlamaCpp(llama_cpp_python)
    path = write_family(tmp_path / "a.gguf", family, 256)
    opened = open_model_folder(str(path), False, tokenizer=TokenizerSource(engine=engine))
    tokenizer, model = load_tokenizer(opened.folder), load_model(opened.folder, dtype=torch.float32)
    prompts = [chat_tokens(tokenizer, text) for text in EVERYDAY[:8]]
    with engine.serve(opened.folder, ServerSettings(512, threads=1), tmp_path / "log") as client:
        check_parity(client, prompts, first_token_logprobs(model, prompts), 0.1)


def test_a_scale_of_the_attention_that_the_file_does_not_hold(tmp_path: Path) -> None:
    """As of Gemma 2 and 3 of 27B, where it is another than Transformers takes."""
    path = write_family(tmp_path / "a.gguf", "gemma3", 128)
    own_tokenizer(read_gguf(path)).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="does not say by what its attention is scaled; of this size of gemma3"):
        open_model_folder(str(path), False, tokenizer=TokenizerSource(tmp_path / "tokenizer"))


@pytest.fixture
def prompt_files(tmp_path: Path) -> list[str]:
    """Return the options that name two files of eight prompts each."""
    options = []
    for kind, verb in (("harmful", "Break"), ("harmless", "Paint")):
        path = tmp_path / f"{kind}.txt"
        path.write_text("".join(f"{verb} the {number} walls of {number}.\n" for number in range(8)), encoding="utf-8")
        options += [f"--{kind}", str(path)]
    return options

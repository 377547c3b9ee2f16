"""Compressions that are calibrated on a text corpus: the sequences, each recipe, the script's record and the plan."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from grid import WORDS, tiny_configuration
from project import copy_project, job_records, names, run_script, write_configuration
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from aird.compression.compress import compress
from aird.compression.recipes.awq import AWQ
from aird.compression.recipes.gptq import GPTQ
from aird.compression.recipes.sparsegpt import SparseGPT
from aird.compression.recipes.wanda import Wanda
from aird.prompts.corpora import read_corpus, token_sequences
from aird.settings.compressions import CalibrationSettings, RecipeSettings
from aird.settings.prompts import Corpus
from aird.settings.sources import FileSource
from aird.support.files import canonical_json, hash_folder, read_json, read_json_lines, write_json

CALIBRATION = CalibrationSettings(corpus="stories", sequences=6, length=32)
CASES: dict[str, RecipeSettings] = {
    "wanda": Wanda(sparsity=0.5, calibration=CALIBRATION),
    "sparsegpt": SparseGPT(sparsity=0.5, calibration=CALIBRATION),
    "gptq": GPTQ(group_size=32, calibration=CALIBRATION),
    "awq": AWQ(group_size=32, calibration=CALIBRATION),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Return a corpus of 20 lines of 12 words."""
    path = tmp_path_factory.mktemp("corpus") / "stories.txt"
    chooser = random.Random(0)
    path.write_text("\n".join(" ".join(chooser.sample(WORDS, 12)) for _ in range(20)) + "\n", encoding="utf-8")
    return Corpus(source=FileSource(path=str(path)), format="lines")


@pytest.fixture(scope="module")
def tokenizer(original: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(original)


def test_texts_are_joined_with_end_tokens_in_a_drawn_order(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = read_corpus(corpus)
    assert len(texts) == 20
    sequences = token_sequences(texts, tokenizer, CALIBRATION)
    assert [len(sequence) for sequence in sequences] == [32] * 6
    joined = [token for sequence in sequences for token in sequence]
    order = random.Random(CALIBRATION.seed).sample(texts, len(texts))
    assert order != texts
    assert (tokenizer.eos_token.join(order)).startswith(tokenizer.decode(joined))
    other = token_sequences(texts, tokenizer, CALIBRATION.model_copy(update={"seed": 1}))
    assert other != sequences


def test_each_sequence_begins_as_the_tokenizer_begins_a_text(corpus: Corpus, original: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(original)
    texts = read_corpus(corpus)
    plain = [token for sequence in token_sequences(texts, tokenizer, CALIBRATION) for token in sequence]
    tokenizer.bos_token = "<|im_start|>"
    start = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[start]
    )
    sequences = token_sequences(texts, tokenizer, CALIBRATION)
    assert all(len(sequence) == 32 and sequence[0] == tokenizer.bos_token_id for sequence in sequences)
    rest = [token for sequence in sequences for token in sequence[1:]]
    assert rest == plain[: len(rest)] and len(rest) == 6 * 31


def test_too_little_text_is_said_with_the_numbers(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = read_corpus(corpus)
    held = sum(len(tokenizer(text)["input_ids"]) + 1 for text in texts)
    most = CALIBRATION.model_copy(update={"length": held // 6})
    assert len(token_sequences(texts, tokenizer, most)) == 6
    more = CALIBRATION.model_copy(update={"length": held // 6 + 1})
    said = f"stories: 6 sequences of {held // 6 + 1} tokens .* its 20 texts hold {held} tokens, enough for 5 sequences"
    with pytest.raises(ValueError, match=said):
        token_sequences(texts, tokenizer, more)


def test_sequences_beyond_the_context_are_refused(original: Path, tmp_path: Path) -> None:
    length = read_json(original / "config.json")["max_position_embeddings"] + 1
    settings = Wanda(sparsity=0.5, calibration=CalibrationSettings(corpus="stories", sequences=1, length=length))
    with pytest.raises(ValueError, match=f"longer than the model's context of {length - 1}"):
        compress(original, tmp_path / "output", settings, [[1] * length])


@pytest.mark.parametrize("name", CASES)
def test_every_calibrated_recipe_sees_the_corpus(
    name: str, original: Path, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    texts = read_corpus(corpus)
    weights = []
    for seed in (0, 1):
        settings = CASES[name].model_copy(update={"calibration": CALIBRATION.model_copy(update={"seed": seed})})
        sequences = token_sequences(texts, tokenizer, getattr(settings, "calibration"))  # noqa: B009
        measured = compress(original, tmp_path / str(seed), settings, sequences)
        assert measured["calibration_tokens"] == 6 * 32
        weights.append(load_file(tmp_path / str(seed) / "model.safetensors"))
    # Other texts leave other weights.
    assert any(not tensor.equal(weights[1][key]) for key, tensor in weights[0].items())
    with pytest.raises(ValueError, match="sequences of 32 tokens each"):
        compress(original, tmp_path / "short", CASES[name], [sequence[:-1] for sequence in sequences])


def test_the_record_of_a_checkpoint_states_the_tokens(original: Path, corpus: Corpus, tmp_path: Path) -> None:
    run_script("read_corpus", settings=corpus.model_dump_json(), output=tmp_path / "stories.jsonl")
    assert [record["text"] for record in read_json_lines(tmp_path / "stories.jsonl")] == read_corpus(corpus)
    write_json(tmp_path / "original.json", {"trust_remote_code": False, "files": hash_folder(original)})
    settings = CASES["wanda"].model_dump()
    run_script(
        "compress_model",
        original=original,
        original_manifest=tmp_path / "original.json",
        calibration=tmp_path / "stories.jsonl",
        settings=canonical_json(settings),
        checkpoint=tmp_path / "checkpoint",
        manifest=tmp_path / "manifest.json",
    )
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["calibration_tokens"] == 6 * 32
    assert manifest["settings"]["calibration"] == {"corpus": "stories", "sequences": 6, "length": 32, "seed": 0}


@pytest.mark.workflow
def test_a_corpus_is_a_node_that_its_compressions_wait_for(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    configuration = tiny_configuration(project, ["tiny", "second"], {"executable": "inputs/python"})
    (project / "inputs/python").write_text("stands for vLLM's environment", encoding="utf-8")
    (project / "inputs/stories.txt").write_text("a longer story\n" * 200, encoding="utf-8")
    configuration["corpora"] = {
        name: {"source": {"path": "inputs/stories.txt"}, "format": "lines"} for name in ("stories", "unused")
    }
    wanda = configuration["compressions"]["wanda-50"]
    configuration["compressions"]["read"] = {
        **wanda,
        "calibration": {"corpus": "stories", "sequences": 4, "length": 32},
    }
    write_configuration(project, configuration)
    jobs = {name: record for record in job_records(project) for name in names([record])}
    assert [name for name in jobs if name.startswith("read_corpus")] == ["read_corpus stories"]
    assert "inputs/stories.txt" in jobs["read_corpus stories"]["input"]
    for model in ("tiny", "second"):
        inputs = jobs[f"compress_model {model}/read"]["input"]
        assert "results/corpora/stories.jsonl" in inputs and "results/prompts/harmless.jsonl" not in inputs
        assert "results/corpora/stories.jsonl" not in jobs[f"compress_model {model}/wanda-50"]["input"]

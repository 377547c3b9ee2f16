"""GGUF by llama.cpp's own converter and quantiser: what is written, measured and refused."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import gguf
import pytest
import torch
from configuration.configuration_cases import BASE
from tiny_model import build_tiny_model, configured, new
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from aird.compression.compress import compress
from aird.compression.gguf_files import PRE_TOKENIZERS, _quantiser, describe_environment, write_gguf
from aird.compression.programs import gguf_quantiser
from aird.compression.recipes.gguf import GGUF
from aird.compression.recipes.kv_cache import KeyValueCache
from aird.configuration.loading import load_configuration
from aird.configuration.local_files import check_files
from aird.configuration.messages import ConfigurationError
from aird.models.checkpoint import read_checkpoint
from aird.models.gguf_file import read_gguf, served_gguf
from aird.models.matrices import dense_matrix
from aird.models.refusals import GGUF_MODELS
from aird.support.files import hash_folder

WRITER, QUERIES = "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("family", "type_", "types", "bits", "error"),
    [
        # Of 128 columns, which K-quants do not divide: llama.cpp takes larger types, all but the 256 of down_proj.
        ("llama", "Q4_K_M", {"Q4_K", "Q6_K", "Q5_0", "Q8_0"}, 5.6, 0.04),
        # No matrix is Q2_K itself, as of people's Q2_K files of models whose columns 256 does not divide.
        ("llama", "Q2_K", {"Q3_K", "Q4_0"}, 4.2, 0.11),
        ("qwen2", "Q8_0", {"Q8_0"}, 8.5, 0.005),
    ],
)
def test_what_is_written(
    family: str, type_: str, types: set[str], bits: float, error: float, gguf_python: Path, tmp_path: Path
) -> None:
    original = build_tiny_model(tmp_path / "original", family=family)
    measurements = compress(original, tmp_path / "made", GGUF(type=type_), None, gguf_python)
    file = served_gguf(tmp_path / "made")
    assert file is not None
    assert types <= measurements["quantisation_types"].keys()
    total = measurements["total"]
    assert set(total["formats"]) <= types and total["bits_per_weight"] == pytest.approx(bits, abs=0.1)
    assert 0.5 * error < total["relative_error"] < 1.5 * error
    # Everything but the weights is the original's.
    before, after = hash_folder(original), hash_folder(tmp_path / "made")
    assert {name for name in before | after if before.get(name) != after.get(name)} == {
        "model.safetensors",
        "model.gguf",
    }
    assert read_checkpoint(tmp_path / "made").tensors.keys() == read_checkpoint(original).tensors.keys()
    # What Transformers reads is what llama.cpp reads.
    reader = gguf.GGUFReader(file)
    stored = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
    values = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type))
    assert torch.equal(dense_matrix(tmp_path / "made", WRITER), values.bfloat16())
    queries = [dense_matrix(folder, QUERIES).float() for folder in (original, tmp_path / "made")]
    assert (queries[0] - queries[1]).norm() < 0.15 * queries[0].norm()
    fields = {
        name: field.contents() for name, field in reader.fields.items() if not name.endswith(("tokens", "merges"))
    }
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] in PRE_TOKENIZERS
    tokenizer = PreTrainedTokenizerFast.from_pretrained(original)
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template


# The largest relative error of a matrix of normally distributed values.
ROUNDING = {"Q4_0": 0.11, "Q2_K": 0.33, "Q3_K": 0.17, "Q4_K": 0.085, "IQ4_XS": 0.09, "Q5_K": 0.042, "Q6_K": 0.021}


def test_what_llama_cpp_packed_is_decoded(gguf_python: Path, tmp_path: Path) -> None:
    """Q4_0, K-quants and IQ4_XS by their own packer; a scale or a bit that is read wrongly costs more than rounding does."""
    original = build_tiny_model(tmp_path / "original")
    config = LlamaConfig.from_pretrained(original, hidden_size=256, num_attention_heads=4)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(original)
    source = read_checkpoint(original)
    write_gguf(source, new(tmp_path / "whole"), None, gguf_python)
    # llama.cpp holds the rows of queries and keys in another order.
    modules = [name for name in source.block_matrices() if not name.endswith(("q_proj", "k_proj"))]
    errors: dict[str, list[float]] = {}
    for type_ in ("Q4_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_S", "IQ4_XS"):
        path = tmp_path / f"{type_}.gguf"
        _quantiser(gguf_python, "quantise", tmp_path / "whole/model.gguf", path, type_, 1)
        file = read_gguf(path)
        for module, decoded in file.matrices(modules):
            wanted = dense_matrix(original, module)
            error = float((decoded - wanted).norm() / wanted.norm())
            errors.setdefault(file.tensor_of(module).type, []).append(error)
    assert errors.keys() == ROUNDING.keys()
    for kind, largest in ROUNDING.items():
        assert 0.5 * largest < min(errors[kind]) and max(errors[kind]) < largest, (kind, errors[kind])


def test_the_originals_own_weights_for_llama_cpp(gguf_python: Path, tmp_path: Path) -> None:
    original = build_tiny_model(tmp_path / "original", family="qwen2")
    measurements = compress(original, tmp_path / "made", KeyValueCache(dtype="q4_0"), None, gguf_python)
    assert measurements["total"]["relative_error"] == 0 and measurements["total"]["bits_per_weight"] == 16
    assert measurements["quantisation_types"].keys() == {"BF16", "F32"}
    ours, theirs = (read_checkpoint(folder).tensors for folder in (tmp_path / "made", original))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].load(), theirs[name].load()) for name in theirs)


def test_what_cannot_be_converted(gguf_python: Path, original: Path, tmp_path: Path) -> None:
    unknown = configured(Path(shutil.copytree(original, tmp_path / "unknown")), architectures=["OwnForCausalLM"])
    with pytest.raises(ValueError, match="converter does not know the architecture OwnForCausalLM"):
        compress(unknown, tmp_path / "made", GGUF(type="Q8_0"), None, gguf_python)
    # A tokenizer that cuts text at the letter e, as none of llama.cpp's does.
    odd = Path(shutil.copytree(original, tmp_path / "odd"))
    tokenizer = json.loads((odd / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"String": "e"}, "behavior": "Isolated", "invert": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, tokenizer["pre_tokenizer"]]}
    (odd / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="llama.cpp has no tokenizer that splits text as that of .*odd does"):
        compress(odd, tmp_path / "made", GGUF(type="Q8_0"), None, gguf_python)
    assert not (tmp_path / "made").exists()


def test_the_environment_says_what_it_is(gguf_python: Path) -> None:
    environment = describe_environment(gguf_python)
    assert environment["versions"]["llama.cpp"].startswith("b")
    assert (Path(environment["packages"]) / "conversion").is_dir()


def test_another_environment_is_an_error_with_its_output(original: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the Python of the environment gguf"):
        compress(original, tmp_path / "made", GGUF(type="Q8_0"), None)
    with pytest.raises(RuntimeError, match="No module named 'cyllama'"):
        compress(original, tmp_path / "made", GGUF(type="Q8_0"), None, Path(sys.executable))
    assert not (tmp_path / "made").exists()


def test_the_types_of_the_configuration_are_those_of_the_program() -> None:
    offered = GGUF.model_fields["type"].annotation
    assert set(offered.__args__) == gguf_quantiser.TYPES.keys()  # type: ignore[union-attr]
    for name, number in gguf_quantiser.TYPES.items():
        assert gguf.LlamaFileType["ALL_F32" if name == "F32" else f"MOSTLY_{name}"] == number


def test_the_models_that_a_configuration_may_convert_are_read_back() -> None:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    known = {name.replace("-", "_").removesuffix("_text") for name in GGUF_SUPPORTED_ARCHITECTURES} | {"mistral"}
    assert {name.removesuffix("_text") for name in GGUF_MODELS} <= known


def test_a_local_model_that_does_not_come_back_is_refused_when_the_workflow_is_planned(tmp_path: Path) -> None:
    configuration = copy.deepcopy(BASE)
    configuration["compressions"]["q4"] = {"recipe": "gguf", "type": "Q4_K_M"}
    (tmp_path / "model").mkdir()
    configuration["models"]["local"] = {"source": {"path": str(tmp_path / "model")}}
    for kind, refused in (("olmo2", True), ("llama", False)):
        (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(ConfigurationError) as error:  # other files of this configuration are not there
            check_files(load_configuration(configuration))
        line = "models.local.compressions: q4 cannot be made of local: a model of the type olmo2 does not come back"
        assert (line in str(error.value)) == refused

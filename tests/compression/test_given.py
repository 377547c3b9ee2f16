"""Ready-made checkpoints: imported as they are where they can be, checked against their original, measured."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import ready_made
import torch
from project import run_script
from ready_made import block_matrices
from safetensors.torch import load_file, save_file
from thinking_templates import QWEN
from tiny_model import (
    CODE,
    build_tiny_model,
    changed_tensors,
    configured,
    logits_of,
    new,
    with_adapter_inside,
    with_own_code,
    with_tokenizer_class,
)
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from aird.compression.patchable import check_patchable
from aird.compression.ready_made import import_given
from aird.inference.generation import stop_tokens
from aird.models.gguf_import import dequantise_gguf
from aird.models.loading import load_model, load_tokenizer, read_chat, trust_code, write_chat
from aird.models.matrices import dense_matrix
from aird.settings.models import Chat
from aird.support.files import hash_folder, read_json, sha256_of, write_json

WRITER = "model.layers.1.mlp.down_proj"
NORM = "model.layers.1.input_layernorm.weight"
READERS = [f"model.layers.1.self_attn.{name}_proj" for name in "kqv"]


def check_served(
    folder: Path, original: Path, wanted: dict[str, torch.Tensor], dtype: torch.dtype, rounding: float = 0
) -> None:
    """Check that Transformers computes with the wanted matrices, in the model's type.

    `rounding`: of the scales, which Transformers keeps in that type; inputs may be rounded to FP8.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="cpu").eval()
    dense = AutoModelForCausalLM.from_pretrained(original, dtype=dtype, device_map="cpu").eval()
    for module, weight in wanted.items():
        dense.get_submodule(module).weight.data = weight.to(dtype)
    expected = logits_of(dense)
    assert (logits_of(model) - expected).abs().mean() < 0.1 * expected.std()
    for module, weight in wanted.items():
        assert torch.equal(dense_matrix(folder, module).to(dtype), weight.to(dtype)), module
        computed = model.get_submodule(module).weight
        torch.testing.assert_close(computed.to(dtype), weight.to(dtype), rtol=rounding, atol=0, msg=module)


Maker = Callable[[Path, Path], dict[str, torch.Tensor]]
# Format, what it is served as, bits of one weight, its scale and its zero point, type of the model.
CASES: dict[str, tuple[Maker, str, str, float, torch.dtype]] = {
    "gptq-4": (ready_made.gptq, "gptq", "repacked", 4 + 20 / 32 + 1 / 4, torch.float16),
    "gptq-8": (lambda o, f: ready_made.gptq(o, f, 8, 64, False), "gptq", "repacked", 8.6, torch.float16),
    "gptq-3": (lambda o, f: ready_made.gptq(o, f, 3, 64), "gptq", "dense copy", 3.5, torch.float16),
    "reordered": (ready_made.reordered, "gptq", "dense copy", 4.8, torch.float16),
    "g_idx": (ready_made.reordered_compressed_tensors, "pack-quantized", "dense copy", 4.8, torch.float16),
    "awq": (ready_made.awq, "awq", "repacked", 4 + 20 / 32, torch.float16),
    "fp8": (lambda o, f: ready_made.fp8_block(o, f, 32, 64), "fp8-block", "repacked", 8.03, torch.bfloat16),
    "fp8-ragged": (ready_made.fp8_block, "fp8-block", "dense copy", 8.03, torch.bfloat16),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_repacked_or_dequantised(name: str, original: Path, tmp_path: Path) -> None:
    maker, form, served_as, bits, dtype = CASES[name]
    wanted = maker(original, tmp_path / "given")
    before = hash_folder(tmp_path / "given")
    record = import_given(tmp_path / "given", original, tmp_path / "imported")
    assert hash_folder(tmp_path / "given") == before
    assert (record["format"], record["served_as"]) == ([form], served_as)
    assert record["given_files"] == {"model.safetensors": before["model.safetensors"]}
    assert record["total"]["formats"] == [form]
    assert record["total"]["bits_per_weight"] == pytest.approx(bits, abs=0.3)
    assert record["total"]["relative_error"] == pytest.approx({"8": 0.01, "3": 0.25}.get(name[-1], 0.1), abs=0.09)
    assert record["patchable"] and record["rescaled"] == record["changed_norms"] == []
    assert record["tokenizer"] == "equal to the original's"
    check_served(tmp_path / "imported", original, wanted, dtype, rounding=2**-7 if name == "fp8" else 0)


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_the_version_of_gptqs_format_stands_under_either_key(version: str, original: Path, tmp_path: Path) -> None:
    """Version 1 stores zero points less one, version 2 as they are."""
    ready_made.gptq(original, tmp_path / "given", 8, 64, False, version)
    config = read_json(tmp_path / "given/config.json")
    keys = {"checkpoint_format": None, "format": None if version == "gptq" else version}
    quantisation = config["quantization_config"] | keys
    write_json(tmp_path / "given/config.json", config | {"quantization_config": quantisation})
    assert import_given(tmp_path / "given", original, tmp_path / "imported")["total"]["relative_error"] < 0.01


def test_a_group_that_does_not_divide_the_columns(original: Path, tmp_path: Path) -> None:
    ready_made.gptq(original, tmp_path / "given")
    config = read_json(tmp_path / "given/config.json")
    config["quantization_config"]["group_size"] = 48
    write_json(tmp_path / "given/config.json", config)
    with pytest.raises(
        ValueError, match=r"cannot read model\.layers\..*: its groups of 48 columns do not divide its 256"
    ):
        import_given(tmp_path / "given", original, tmp_path / "imported")


def test_an_adapter_on_a_repacked_checkpoint(original: Path, tmp_path: Path) -> None:
    from aird.patching.adapters import merge, save_adapter
    from aird.patching.edits import Edit

    ready_made.gptq(original, tmp_path / "given", symmetric=False)
    import_given(tmp_path / "given", original, tmp_path / "imported")
    generator = torch.Generator().manual_seed(0)
    edit = Edit.rank_one(WRITER, torch.randn(128, generator=generator), torch.randn(256, generator=generator))
    save_adapter([edit], new(tmp_path / "adapter"), "base")
    merge(tmp_path / "imported", [edit], new(tmp_path / "merged"))
    patched = logits_of(load_model(tmp_path / "imported", tmp_path / "adapter"))
    merged = logits_of(load_model(tmp_path / "merged"))
    assert (patched - merged).abs().max() < 0.02 * merged.std()
    assert (patched - logits_of(load_model(tmp_path / "imported"))).abs().max() > merged.std()


def test_what_can_be_served_stays_as_it_is(original: Path, tmp_path: Path) -> None:
    from aird.compression.compress import compress
    from aird.compression.recipes.bitsandbytes import BitsAndBytes
    from aird.compression.recipes.magnitude import Magnitude
    from aird.compression.recipes.round_to_nearest import RoundToNearest

    for recipe in (Magnitude(sparsity=0.3), RoundToNearest(weight_bits=4, group_size=32), BitsAndBytes(variant="nf4")):
        name = recipe.model_dump()["recipe"]
        made = compress(original, tmp_path / name, recipe, None)
        (tmp_path / name / "README.md").write_text("A card is not imported.")
        record = import_given(tmp_path / name, original, tmp_path / "imported" / name)
        (tmp_path / name / "README.md").unlink()
        assert record["served_as"] == "as stored" and record["patchable"]
        assert hash_folder(tmp_path / "imported" / name) == hash_folder(tmp_path / name)
        assert record["total"] == made["total"] and record["other_tensors"] == made["other_tensors"]


def test_packed_matrices_that_config_json_says_nothing_of(original: Path, tmp_path: Path) -> None:
    """As AutoGPTQ and AutoAWQ once wrote them: Transformers would give all of them random values."""
    for maker, name in ((ready_made.gptq, "quantize_config.json"), (ready_made.awq, "quant_config.json")):
        folder = tmp_path / name
        maker(original, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / name).write_text(json.dumps(config.pop("quantization_config")))
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(
            ValueError, match=f"no quantization_config; {name}, which some tools write instead, is not read"
        ):
            import_given(folder, original, tmp_path / "imported")
        with pytest.raises(
            ValueError, match="lacks tensors of its model .28, model.layers.0.mlp.down_proj.weight first"
        ):
            load_model(folder)


def test_a_packing_that_is_not_read_is_said_before_the_shapes_that_it_hides(original: Path, tmp_path: Path) -> None:
    given = Path(shutil.copytree(original, tmp_path / "given"))
    with changed_tensors(given) as tensors:
        for module, weight in block_matrices(original).items():  # as MLX packs them
            tensors[f"{module}.weight"] = torch.zeros(len(weight), weight.shape[1] // 8, dtype=torch.uint32)
            for name in ("scales", "biases"):
                tensors[f"{module}.{name}"] = torch.ones(len(weight), weight.shape[1] // 32)
    with pytest.raises(
        ValueError, match=r"stores model\.layers\.0\.\S+ packed \(unknown\), but its config\.json has no"
    ):
        import_given(given, original, tmp_path / "imported")
    configured(given, quantization={"group_size": 32, "bits": 4})
    with pytest.raises(ValueError, match="is stored as MLX, which is not read"):
        import_given(given, original, tmp_path / "imported")


def test_checkpoints_that_lack_tensors(original: Path, tmp_path: Path) -> None:
    from aird.compression.compress import compress
    from aird.compression.recipes.bitsandbytes import BitsAndBytes
    from aird.compression.recipes.round_to_nearest import RoundToNearest

    for recipe in (RoundToNearest(weight_bits=4, group_size=32), BitsAndBytes(variant="nf4")):
        folder = tmp_path / recipe.model_dump()["recipe"]
        compress(original, folder, recipe, None)
        load_model(folder)
        for missing in (NORM, "model.embed_tokens.weight"):
            broken = Path(shutil.copytree(folder, tmp_path / f"{folder.name}-without-{missing}"))
            with changed_tensors(broken) as tensors:
                del tensors[missing]
            with pytest.raises(ValueError, match=f"lacks the tensor {missing}; fetch it again"):
                import_given(broken, original, tmp_path / "imported")
            # The output head is tied to the embedding.
            counted = "1, model.layers" if missing == NORM else "2, lm_head"
            with pytest.raises(ValueError, match=f"lacks tensors of its model .{counted}"):
                load_model(broken)
    other = configured(Path(shutil.copytree(original, tmp_path / "other")), intermediate_size=512)
    with pytest.raises(
        ValueError, match=r"stores model.layers.0.mlp.down_proj.weight as \[128, 256\], but .* \[128, 512"
    ):
        load_model(other)


@pytest.mark.parametrize("types", [["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"], ["F16"]])
def test_a_gguf_file_is_dequantised(types: list[str], original: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    held = ready_made.gguf_file(original, path, types)
    record = import_given(path, original, tmp_path / "imported")
    assert (record["format"], record["served_as"]) == (["gguf"], "dense copy")
    assert set(record["quantisation_types"]) == {"F32", *types}
    assert record["given_files"] == {"model.gguf": sha256_of(path)} and record["given_bytes"] == path.stat().st_size
    assert record["total"]["formats"] == sorted(types)
    bits = {"Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5, "F16": 16}
    for matrix in record["matrices"].values():
        assert matrix["bits_per_weight"] == bits[matrix["given_format"]]
    assert record["total"]["relative_error"] < 0.1
    for module, matrix in held.items():
        assert torch.equal(dense_matrix(tmp_path / "imported", module), matrix.to(torch.bfloat16)), module
    check_served(tmp_path / "imported", original, held, torch.bfloat16)


LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_positions_are_scaled_as_in_the_model_that_a_gguf_file_was_made_from(original: Path, tmp_path: Path) -> None:
    """Llama 3 stretches them; the file holds the factors of the frequencies, which Transformers does not read."""
    model = configured(Path(shutil.copytree(original, tmp_path / "model")), rope_parameters=LLAMA_3)
    config = AutoConfig.from_pretrained(model)
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 10000.0 ** (torch.arange(0, config.head_dim, 2) / config.head_dim)
    factors = (plain / stretched).float().numpy()
    assert factors.max() > 7
    path = tmp_path / "model.gguf"
    ready_made.gguf_file(model, path, ["F32"], also=lambda writer: writer.add_tensor("rope_freqs.weight", factors))
    import_given(path, model, tmp_path / "imported")
    assert AutoConfig.from_pretrained(tmp_path / "imported").rope_parameters == config.rope_parameters
    dequantise_gguf(path, new(tmp_path / "alone"), torch.float32)
    prompt = torch.randint(3, config.vocab_size, (1, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, unscaled, *found = (
            load_model(folder, dtype=torch.float32)(input_ids=prompt).logits
            for folder in (model, original, tmp_path / "imported", tmp_path / "alone")
        )
    assert (unscaled - expected).abs().max() > 0.1
    for logits in found:
        torch.testing.assert_close(logits, expected, atol=2e-3, rtol=0)


def test_a_gguf_file_alone_that_says_what_is_not_read(original: Path, tmp_path: Path) -> None:
    """Given its original, the same file is read by that one's configuration."""

    def refusal(name: str, **more: Any) -> str:
        path = tmp_path / f"{name}.gguf"
        ready_made.gguf_file(original, path, ["F16"], **more)
        with pytest.raises(ValueError) as error:
            dequantise_gguf(path, new(tmp_path / name), torch.float32)
        assert "the model that it was made from as its original" in str(error.value)
        return str(error.value)

    bias = numpy.ones(128, dtype=numpy.float32)
    scaling = gguf.RopeScalingType.YARN
    assert "scales positions (yarn)" in refusal("yarn", also=lambda writer: writer.add_rope_scaling_type(scaling))
    assert "turns 8 features of each head" in refusal("turned", turned=8)
    lost = refusal("bias", also=lambda writer: writer.add_tensor("blk.1.ffn_down.bias", bias))
    assert "holds blk.1.ffn_down.bias, the bias of model.layers.1.mlp.down_proj" in lost
    import_given(tmp_path / "yarn.gguf", original, tmp_path / "imported")


def super_block(kind: str, block: bytes) -> list[float]:
    """Return the 256 values of a block of Q4_K or Q6_K, from ggml's description of the two (ggml-common.h)."""

    def half(place: int) -> float:
        return float(struct.unpack_from("<e", block, place)[0])

    values = []
    if kind == "Q4_K":  # d, dmin, 12 bytes with eight 6-bit scales and mins, 128 bytes with 4 bits a value
        scales = block[4:16]
        for group in range(8):
            low = group % 4
            if group < 4:
                scale, least = scales[low] & 63, scales[low + 4] & 63
            else:
                scale = (scales[low + 8] & 15) | (scales[low] >> 6) << 4
                least = (scales[low + 8] >> 4) | (scales[low + 4] >> 6) << 4
            for index in range(32):
                byte = block[16 + 32 * (group // 2) + index]
                integer = byte >> 4 if group % 2 else byte & 15
                values.append(half(0) * scale * integer - half(2) * least)
        return values
    for index in range(256):  # 128 bytes of low, 64 of high bits, 16 signed scales, d
        part, place = divmod(index, 128)
        row, column = divmod(place, 32)
        low = block[64 * part + 32 * (row % 2) + column] >> (4 * (row // 2)) & 15
        high = block[128 + 32 * part + column] >> (2 * row) & 3
        scale = struct.unpack_from("<b", block, 192 + index // 16)[0]
        values.append(half(208) * scale * ((low | high << 4) - 32))
    return values


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ3_S", "IQ4_XS", "TQ2_0"])
def test_types_that_only_llama_cpp_writes(kind: str, original: Path, tmp_path: Path) -> None:
    """Every matrix comes to its module; Q4_K and Q6_K (Q4_K_M) also by a decoder of the test's own."""
    held = ready_made.gguf_file(original, tmp_path / "model.gguf", ["Q8_0"], widest=kind)
    record = import_given(tmp_path / "model.gguf", original, tmp_path / "imported")
    assert record["matrices"][WRITER]["given_format"] == kind and kind in record["quantisation_types"]
    # Random bytes are no compressed form of the original.
    assert not record["patchable"]
    matrix = dense_matrix(tmp_path / "imported", WRITER)
    assert torch.equal(matrix, held[WRITER].to(torch.bfloat16))
    if kind in ("Q4_K", "Q6_K"):
        rows = [super_block(kind, bytes(row)) for row in ready_made.random_blocks(kind, 128, 256)]
        torch.testing.assert_close(held[WRITER], torch.tensor(rows), rtol=1e-5, atol=1e-6)


def test_gguf_files_that_are_refused(original: Path, tmp_path: Path) -> None:
    ready_made.gguf_of_one_tensor(tmp_path / "own.gguf", "rwkv6")
    with pytest.raises(ValueError, match="of the architecture rwkv6, which Transformers does not read from GGUF; take"):
        import_given(tmp_path / "own.gguf", original, tmp_path / "imported")
    (tmp_path / "own.gguf").write_bytes(b"GGUF damaged")
    with pytest.raises(ValueError, match="cannot be read as a GGUF model .*; fetch it again"):
        import_given(tmp_path / "own.gguf", original, tmp_path / "imported")


@pytest.mark.parametrize("architecture", ["qwen3moe", "llama"])
def test_mixtures_of_experts_as_gguf(architecture: str, original: Path, tmp_path: Path) -> None:
    """Mixtral's architecture is llama."""
    ready_made.gguf_of_one_tensor(tmp_path / "own.gguf", architecture, experts=8)
    with pytest.raises(
        ValueError, match=rf"is a mixture of experts \({architecture}\), and mixtures are not read from"
    ):
        import_given(tmp_path / "own.gguf", original, tmp_path / "imported")


@pytest.mark.parametrize("says", [{"pre": "llama-bpe"}, {"model": "llama"}, {"pre": "unknown"}])
def test_a_gguf_file_gets_the_originals_tokenizer_and_ends(
    says: dict[str, str], original: Path, tmp_path: Path
) -> None:
    """Whatever it says itself of how to split text, where its tokens are the original's."""
    base = Path(shutil.copytree(original, tmp_path / "base"))
    settings = read_json(base / "generation_config.json")
    write_json(base / "generation_config.json", {**settings, "eos_token_id": [2, 7], "temperature": 0.6})
    ready_made.gguf_file(base, tmp_path / "model.gguf", ["Q8_0"], **says)
    record = import_given(tmp_path / "model.gguf", base, tmp_path / "imported")
    assert record["tokenizer"] == "the original's, as the file has its vocabulary"
    for path in base.glob("tokenizer*"):
        assert (tmp_path / "imported" / path.name).read_bytes() == path.read_bytes()
    settings = read_json(tmp_path / "imported/generation_config.json")
    assert settings["eos_token_id"] == [2, 7] and "temperature" not in settings
    model, tokenizer = load_model(tmp_path / "imported"), load_tokenizer(tmp_path / "imported")
    assert stop_tokens(model, tokenizer) == {2, 7}


def test_the_chat_template_of_a_gguf_file(original: Path, tmp_path: Path) -> None:
    """Its own, and said where it differs; the original's where it has none."""
    template = load_tokenizer(original).chat_template
    ready_made.gguf_file(original, tmp_path / "own.gguf", ["Q8_0"], chat_template="Now: " + template)
    record = import_given(tmp_path / "own.gguf", original, tmp_path / "own")
    assert record["tokenizer"] == "the original's, as the file has its vocabulary, but with another chat template"
    assert load_tokenizer(tmp_path / "own").chat_template == "Now: " + template
    ready_made.gguf_file(original, tmp_path / "none.gguf", ["Q8_0"], chat_template=None)
    record = import_given(tmp_path / "none.gguf", original, tmp_path / "none")
    assert record["tokenizer"].endswith("vocabulary; so is the chat template, as the file brings none")
    assert load_tokenizer(tmp_path / "none").chat_template == template


def test_the_vocabulary_of_a_gguf_file(original: Path, tmp_path: Path) -> None:
    """Rows at the end without a token may have any name in the file; another token is refused."""
    model = AutoModelForCausalLM.from_pretrained(original, dtype="auto")
    base = Path(shutil.copytree(original, tmp_path / "base"))
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 16)
    model.save_pretrained(base)
    ready_made.gguf_file(base, tmp_path / "model.gguf", ["Q8_0"], padding=16)
    import_given(tmp_path / "model.gguf", base, tmp_path / "imported")
    tokenizer = load_tokenizer(original)
    tokens = [*tokenizer.convert_ids_to_tokens(range(rows)), *(f"<new {number}>" for number in range(16))]
    ready_made.gguf_file(base, tmp_path / "more.gguf", ["Q8_0"], tokens=tokens)
    with pytest.raises(ValueError, match=rf"its token {rows} is '<new 0>', the original's is absent; name the model"):
        import_given(tmp_path / "more.gguf", base, tmp_path / "more")
    tokens = tokenizer.convert_ids_to_tokens(range(rows))
    tokens[300], tokens[301] = tokens[301], tokens[300]
    ready_made.gguf_file(original, tmp_path / "other.gguf", ["Q8_0"], tokens=tokens)
    with pytest.raises(ValueError, match=r"other.gguf has another vocabulary than .*: its token 300 is "):
        import_given(tmp_path / "other.gguf", original, tmp_path / "other")


def scaled_awq(original: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Write AWQ as AutoAWQ does: input channels of one block's attention are scaled, and its norm takes that over."""
    factors = 1 + torch.arange(128) % 7 / 4

    def scale(module: str) -> torch.Tensor:
        return factors if module in READERS else torch.ones(1)

    wanted = ready_made.awq(original, folder, scale=scale)
    with changed_tensors(folder) as tensors:
        tensors[NORM] = (tensors[NORM].float() / factors).to(tensors[NORM].dtype)
    return wanted


def test_what_awq_rescaled_is_found_and_not_compared(original: Path, tmp_path: Path) -> None:
    scaled_awq(original, tmp_path / "given")
    record = import_given(tmp_path / "given", original, tmp_path / "imported")
    assert record["changed_norms"] == [NORM]
    assert record["rescaled"] == READERS
    assert all(record["matrices"][module]["relative_error"] is None for module in READERS)
    assert record["matrices"][WRITER]["relative_error"] < 0.15
    assert record["total"]["relative_error"] is None
    assert record["patchable"]


def test_another_models_matrices_are_measured_but_not_patched(original: Path, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", seed=1)
    record = import_given(other, original, tmp_path / "imported")
    assert not record["patchable"] and record["total"]["relative_error"] is None
    with pytest.raises(ValueError, match="measured but not patched: 28 matrices, .* rotated .* or belong to another"):
        check_patchable(record)
    check_patchable({"patchable": True})
    check_patchable({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "hqq"}}, "stored as HQQ, which is not read; convert the original"),
        ({"quantization_config": {"quant_method": "own"}}, "quantised by own, which is not known"),
        ({"hidden_size": 64}, "was not made from .*: its hidden_size is 64, the original's 128"),
        ({"num_hidden_layers": 3}, "its num_hidden_layers is 3"),
        ({"vocab_size": 1}, "its vocab_size is 1"),
        ({"intermediate_size": 512}, "was not made from .*: its intermediate_size is 512"),
        (
            {"intermediate_size": 512, "quantization_config": {"quant_method": "gptq", "bits": 4}},
            "has wider matrices than .*: its intermediate_size is 512, the original's 256; where it was padded",
        ),
    ],
)
def test_what_is_refused_before_anything_is_copied(
    changes: dict[str, Any], message: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = configured(Path(shutil.copytree(original, tmp_path / "given")), **changes)

    def copied(*_: Any) -> None:
        raise AssertionError("was copied")

    monkeypatch.setattr("aird.compression.ready_made.copy_weights", copied)
    with pytest.raises(ValueError, match=message):
        import_given(given, original, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_an_adapter_beside_the_weights(packed: bool, original: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    if packed:
        ready_made.gptq(original, given)
    else:
        shutil.copytree(original, given)
    with pytest.raises(ValueError, match="given holds an adapter beside the model .*; merge it into the weights"):
        import_given(with_adapter_inside(given), original, tmp_path / "imported")


def test_code_of_an_original_is_trusted_and_no_other(original: Path, tmp_path: Path) -> None:
    """What a stranger's checkpoint brings besides does not even get imported."""
    trust_code()
    trusted, ran = with_own_code(Path(shutil.copytree(original, tmp_path / "trusted"))), tmp_path / "ran"
    code = read_json(trusted / "config.json")["auto_map"]
    evil = f"open({str(ran)!r}, 'w')\n{CODE}"

    def given(name: str) -> Path:
        return Path(shutil.copytree(trusted, tmp_path / name))

    import_given(given("same"), trusted, tmp_path / "imported")
    assert (tmp_path / "imported/own.py").read_text(encoding="utf-8") == CODE
    assert type(load_model(tmp_path / "imported")).__name__ == "OwnForCausalLM"

    other, added, lacking = given("other"), given("added"), given("lacking")
    (other / "own.py").write_text(evil, encoding="utf-8")
    (added / "evil.py").write_text(evil, encoding="utf-8")
    (lacking / "own.py").unlink()
    elsewhere = configured(given("elsewhere"), auto_map=code | {"AutoConfig": "some/body--own.OwnConfig"})
    tokenizer = given("tokenizer")
    settings = read_json(tokenizer / "tokenizer_config.json")
    code_of_it = {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    write_json(tokenizer / "tokenizer_config.json", settings | code_of_it)
    for folder, message in (
        (other, "other brings another own.py than .*; read it, and copy the original's over it, or measure"),
        (
            added,
            "added brings the code evil.py, and .*trusted, .* has no such file; read it, and remove it, or measure",
        ),
        (lacking, "lacking names its original's code and lacks own.py; copy it from .*trusted"),
        (elsewhere, "takes code from some/body--own.OwnConfig .AutoConfig in an auto_map.*; write the original's"),
        (tokenizer, "takes code from own.OwnTokenizer .AutoTokenizer in an auto_map"),
    ):
        with pytest.raises(ValueError, match=message):
            import_given(folder, trusted, tmp_path / "refused")
    assert not ran.exists() and not (tmp_path / "refused").exists()


def test_matrices_that_are_not_the_originals(original: Path, tmp_path: Path) -> None:
    given = Path(shutil.copytree(original, tmp_path / "given"))
    with changed_tensors(given) as tensors:
        weight = tensors.pop(f"{WRITER}.weight")
    with pytest.raises(ValueError, match=f"lacks the matrix {WRITER}"):
        import_given(given, original, tmp_path / "imported")
    with changed_tensors(given) as tensors:
        tensors[f"{WRITER}.weight"] = weight.T.contiguous()
    with pytest.raises(ValueError, match=rf"{WRITER} is \(256, 128\), the original's is \(128, 256\)"):
        import_given(given, original, tmp_path / "imported")


def test_a_gguf_file_of_another_model(original: Path, tmp_path: Path) -> None:
    ready_made.gguf_file(original, tmp_path / "model.gguf", ["Q8_0"])
    other = configured(Path(shutil.copytree(original, tmp_path / "other")), intermediate_size=512)
    with pytest.raises(ValueError, match="its feed_forward_length is 256, the original's intermediate_size 512"):
        import_given(tmp_path / "model.gguf", other, tmp_path / "imported")


def test_tokenizers(original: Path, tmp_path: Path) -> None:
    """None: the original's is taken. Without a template, or with another: said. Other tokens: refused."""
    given = Path(shutil.copytree(original, tmp_path / "given"))
    template = (given / "chat_template.jinja").read_text()
    (given / "chat_template.jinja").write_text("Now: " + template)
    record = import_given(given, original, tmp_path / "imported")
    assert record["tokenizer"] == "equal to the original's, but with another chat template"
    (given / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}{{ 'So: ' }}{% endif %}")
    with pytest.raises(ValueError, match=r"puts \d+ tokens behind an instruction, that of .*; take the template out"):
        import_given(given, original, tmp_path / "imported")
    (given / "chat_template.jinja").unlink()
    record = import_given(given, original, tmp_path / "imported")
    assert record["tokenizer"] == "equal to the original's, whose chat template it got, as it brings none"
    assert load_tokenizer(tmp_path / "imported").chat_template == template
    tokenizer = json.loads((given / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:3]
    (given / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="splits text into other tokens than"):
        import_given(given, original, tmp_path / "imported-too")
    shutil.copyfile(original / "tokenizer.json", given / "tokenizer.json")
    import_given(with_tokenizer_class(given, "LlamaTokenizerFast"), original, tmp_path / "imported")  # as R1's distills
    assert load_tokenizer(tmp_path / "imported").decode(load_tokenizer(original)("a  b\n").input_ids) == "a  b\n"
    for path in given.glob("tokenizer*"):
        path.unlink()
    record = import_given(given, original, tmp_path / "imported")
    assert record["tokenizer"] == "the original's, as the checkpoint brings none"
    assert load_tokenizer(tmp_path / "imported").chat_template == template


def test_the_default_of_several_chat_templates(original: Path, tmp_path: Path) -> None:
    """As Hermes 3 and Command R have them: a checkpoint without one gets that by which its original is asked."""
    base, given = (Path(shutil.copytree(original, tmp_path / name)) for name in ("base", "given"))
    template = (base / "chat_template.jinja").read_text()
    for folder in (base, given):
        (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": f"Tools: {template}"}, {"name": "default", "template": template}]
    settings = read_json(base / "tokenizer_config.json")
    write_json(base / "tokenizer_config.json", {**settings, "chat_template": named})
    record = import_given(given, base, tmp_path / "imported")
    assert record["tokenizer"] == "equal to the original's, whose chat template it got, as it brings none"
    assert load_tokenizer(tmp_path / "imported").chat_template == template


@pytest.mark.parametrize("own", [True, False])
def test_the_chat_settings_are_the_originals(original: Path, tmp_path: Path, own: bool) -> None:
    """Not those that a checkpoint brings; both are asked alike."""
    base, given = (Path(shutil.copytree(original, tmp_path / name)) for name in ("base", "given"))
    for folder in (base, given):
        (folder / "chat_template.jinja").write_text(QWEN)
    if not own:
        for path in given.glob("tokenizer*"):
            path.unlink()
    chat = Chat(template_arguments={"enable_thinking": False})
    write_chat(chat, base)
    write_chat(Chat(system_prompt="Be rude."), given)
    import_given(given, base, tmp_path / "imported")
    assert read_chat(tmp_path / "imported") == chat
    write_chat(Chat(thinks=False), base)
    ready_made.gguf_file(base, tmp_path / "model.gguf", ["Q8_0"])
    import_given(tmp_path / "model.gguf", base, tmp_path / "of-a-file")
    assert read_chat(tmp_path / "of-a-file") == Chat(thinks=False)


def test_shards_are_repacked_one_by_one(original: Path, tmp_path: Path) -> None:
    wanted = ready_made.gptq(original, tmp_path / "given")
    tensors = load_file(tmp_path / "given/model.safetensors")
    (tmp_path / "given/model.safetensors").unlink()
    names = sorted(tensors)
    files = {
        name: f"model-0000{1 + (position > len(names) / 2)}-of-00002.safetensors" for position, name in enumerate(names)
    }
    # Tensors of one module may lie in two shards.
    files[f"{WRITER}.qzeros"] = "model-00002-of-00002.safetensors"
    for file in set(files.values()):
        save_file(
            {name: tensors[name] for name in names if files[name] == file}, tmp_path / "given" / file, {"format": "pt"}
        )
    (tmp_path / "given/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    import_given(tmp_path / "given", original, tmp_path / "imported")
    assert len(list((tmp_path / "imported").glob("*.safetensors"))) == 2
    check_served(tmp_path / "imported", original, wanted, torch.float16)


def test_matrices_that_stay_dense_beside_packed_ones(original: Path, tmp_path: Path) -> None:
    wanted = ready_made.gptq(original, tmp_path / "given")
    wanted[WRITER] = block_matrices(original)[WRITER].half()
    with changed_tensors(tmp_path / "given") as tensors:
        for local in ("qweight", "qzeros", "scales", "g_idx"):
            del tensors[f"{WRITER}.{local}"]
        tensors[f"{WRITER}.weight"] = wanted[WRITER]
    record = import_given(tmp_path / "given", original, tmp_path / "imported")
    assert record["format"] == ["dense", "gptq"]
    check_served(tmp_path / "imported", original, wanted, torch.float16)


@pytest.mark.thorough
def test_the_manifest_says_what_the_checkpoint_says_about_generation(original: Path, tmp_path: Path) -> None:
    """Such settings are often a quantiser's own, and are not followed."""
    given = tmp_path / "given"
    ready_made.gptq(original, given)
    write_json(given / "generation_config.json", {"do_sample": True, "temperature": 0.6, "eos_token_id": 2})
    write_json(tmp_path / "original.json", {"files": hash_folder(original)})
    run_script(
        "import_given",
        recipe="given",
        settings=json.dumps({"path": str(given)}),
        original=original,
        original_manifest=tmp_path / "original.json",
        checkpoint=tmp_path / "checkpoint",
        manifest=tmp_path / "manifest.json",
    )
    assert read_json(tmp_path / "manifest.json")["generation_settings"] == {"do_sample": True, "temperature": 0.6}

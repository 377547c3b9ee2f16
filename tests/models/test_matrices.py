"""Every format that is read gives the matrix that its packer was asked to store, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ready_made
import torch
from tiny_model import changed_tensors, configured
from transformers import AutoModelForCausalLM

from aird.compression.measure import check_stored_formats, measure
from aird.models.checkpoint import read_checkpoint
from aird.models.dense import needs_dense_copy, write_dense_copy
from aird.models.formats import gptq
from aird.models.matrices import declared_format, dense_matrix, matrix_shape, quantization_scheme, stored_format
from aird.models.packed import column_order, repacked_config
from aird.support.files import read_json

READER = "model.layers.1.self_attn.k_proj"  # [64, 128]
WRITER = "model.layers.1.mlp.down_proj"  # [128, 256]


def check_matrices(folder: Path, wanted: dict[str, torch.Tensor], form: str) -> None:
    checkpoint = read_checkpoint(folder)
    assert sorted(checkpoint.block_matrices()) == sorted(wanted)
    for module in (READER, WRITER):
        assert stored_format(checkpoint, module) == declared_format(checkpoint, module) == form
        assert matrix_shape(checkpoint, module) == tuple(wanted[module].shape)
        matrix = dense_matrix(folder, module)
        assert matrix.dtype == wanted[module].dtype and torch.equal(matrix, wanted[module]), module


def order_of_columns(folder: Path) -> torch.Tensor | None:
    checkpoint = read_checkpoint(folder)
    return column_order(checkpoint.module_tensors(WRITER), quantization_scheme(checkpoint, WRITER))


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_as_autoround_packs_it(original: Path, tmp_path: Path, bits: int, symmetric: bool, version: str) -> None:
    wanted = ready_made.gptq(original, tmp_path / "gptq", bits, 64, symmetric, version)
    check_matrices(tmp_path / "gptq", wanted, "gptq")
    assert order_of_columns(tmp_path / "gptq") is None


def test_gptq_with_reordered_columns(original: Path, tmp_path: Path) -> None:
    wanted = ready_made.reordered(original, tmp_path / "gptq")
    check_matrices(tmp_path / "gptq", wanted, "gptq")
    order = order_of_columns(tmp_path / "gptq")
    assert order is not None and order.bincount().tolist() == [32] * 8


def test_compressed_tensors_with_reordered_columns(original: Path, tmp_path: Path) -> None:
    """The installed compressed-tensors refuses `actorder: group`, and without it ignores `weight_g_idx`."""
    wanted = ready_made.reordered_compressed_tensors(original, tmp_path / "packed")
    check_matrices(tmp_path / "packed", wanted, "pack-quantized")
    quantisation = read_json(tmp_path / "packed/config.json")["quantization_config"]
    weights = quantisation["config_groups"]["group_0"]["weights"]
    for order, message in ((None, None), ("sideways", "does not read the quantization_config")):
        weights["actorder"] = order
        configured(tmp_path / "packed", quantization_config=quantisation)
        if message is None:
            check_matrices(tmp_path / "packed", wanted, "pack-quantized")
        else:
            with pytest.raises(ValueError, match=message):
                dense_matrix(tmp_path / "packed", WRITER)


def test_awq_as_autoround_packs_it(original: Path, tmp_path: Path) -> None:
    check_matrices(tmp_path / "awq", ready_made.awq(original, tmp_path / "awq"), "awq")


def test_fp8_in_blocks_that_do_not_divide_the_matrix(original: Path, tmp_path: Path) -> None:
    from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer

    wanted = ready_made.fp8_block(original, tmp_path / "fp8")
    check_matrices(tmp_path / "fp8", wanted, "fp8-block")
    stored = {f"{WRITER}.{k}": t.load() for k, t in read_checkpoint(tmp_path / "fp8").module_tensors(WRITER).items()}
    reader = FP8BlockDequantizer(targets=["re:.*"], weight_block_size=(32, 48), dtype=torch.float32)
    assert torch.equal(reader.process(stored)[f"{WRITER}.weight"], wanted[WRITER])


@pytest.mark.parametrize(
    ("scheme", "form"),
    [
        ("W4A16", "pack-quantized"),
        ("W4A16_ASYM", "pack-quantized"),
        ("W8A16", "pack-quantized"),
        ("W8A8", "int-quantized"),
        ("FP8", "float-quantized"),
        ("FP8_DYNAMIC", "float-quantized"),
        ("FP8_BLOCK", "float-quantized"),
        ("NVFP4A16", "nvfp4-pack-quantized"),
        ("MXFP4A16", "mxfp4-pack-quantized"),
    ],
)
def test_compressed_tensors_as_llmcompressor_packs_it(original: Path, tmp_path: Path, scheme: str, form: str) -> None:
    """What Transformers computes with, and within the type's rounding of the original."""
    from llmcompressor.modifiers.quantization import QuantizationModifier

    from aird.compression.quiet import only_warnings

    options: dict[str, Any] = {"targets": ["Linear"], "scheme": scheme, "ignore": ["re:.*lm_head"]}
    if scheme == "FP8":
        eight_bits = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
        group = {"targets": ["Linear"], "weights": eight_bits, "input_activations": {**eight_bits, "dynamic": True}}
        options = {"config_groups": {"group_0": group}, "ignore": ["re:.*lm_head"]}
    with only_warnings():
        folder = ready_made.llm_compressor(original, tmp_path / scheme, QuantizationModifier(**options))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="cpu")
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]))
    check_matrices(
        folder, {module: model.get_submodule(module).weight for module in ready_made.block_matrices(original)}, form
    )
    plain = ready_made.block_matrices(original)[WRITER].float()
    # What vLLM has no kernel for on a CPU is served from a dense copy.
    assert needs_dense_copy(folder, on_cpu=True) == (scheme not in ("W8A8", "FP8", "FP8_DYNAMIC"))
    assert not needs_dense_copy(folder, on_cpu=False)
    write_dense_copy(folder, tmp_path, torch.float32)
    copied = dense_matrix(tmp_path, WRITER)
    torch.testing.assert_close(copied, dense_matrix(folder, WRITER).float(), rtol=2**-7, atol=0)
    error = (copied - plain).norm() / plain.norm()
    assert error < (0.13 if "4" in scheme.split("A")[0] else 0.03)


@pytest.mark.parametrize(("kind", "double"), [("nf4", False), ("nf4", True), ("fp4", False)])
def test_bitsandbytes_as_transformers_saves_it(original: Path, tmp_path: Path, kind: str, double: bool) -> None:
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double)
    model: Any = AutoModelForCausalLM.from_pretrained(
        original, dtype="auto", quantization_config=config, device_map="cpu"
    )
    wanted = {
        module: dequantize_bnb_weight(model.get_submodule(module).weight)
        for module in ready_made.block_matrices(original)
    }
    model.save_pretrained(tmp_path / kind)
    check_matrices(tmp_path / kind, wanted, f"bitsandbytes-{kind}")


def test_modules_that_bitsandbytes_skips(original: Path, tmp_path: Path) -> None:
    """As Transformers understands the list: whole parts of blocks, ends of names and patterns."""
    from transformers import BitsAndBytesConfig

    skipped = ["lm_head", "model.layers.1.mlp", "v_proj", r"model\.layers\.[02]\.self_attn.o_proj"]
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skipped)
    AutoModelForCausalLM.from_pretrained(
        original, dtype="auto", quantization_config=config, device_map="cpu"
    ).save_pretrained(tmp_path)
    measured = measure(tmp_path)
    check_stored_formats(measured)
    dense = {module for module, matrix in measured["matrices"].items() if matrix["declared_format"] == "dense"}
    blocks = ready_made.block_matrices(original)
    named = {f"model.layers.{block}.self_attn.o_proj" for block in (0, 2)}
    parts = {module for module in blocks if module.startswith("model.layers.1.mlp.") or module.endswith("v_proj")}
    assert dense & blocks.keys() == named | parts
    assert torch.equal(dense_matrix(tmp_path, WRITER), blocks[WRITER])


def test_zero_points_that_programs_read_differently(original: Path, tmp_path: Path) -> None:
    ready_made.gptq(original, tmp_path / "gptq", symmetric=False)
    with changed_tensors(tmp_path / "gptq") as tensors:
        tensors[f"{WRITER}.qzeros"][0, 0] = -1
    with pytest.raises(ValueError, match=f"cannot read {WRITER}: it stores 15 as a zero point.* save it as gptq_v2"):
        dense_matrix(tmp_path / "gptq", WRITER)
    config: Any = read_checkpoint(tmp_path / "gptq").quantization_config
    configured(tmp_path / "gptq", quantization_config=config | {"sym": True})
    with pytest.raises(ValueError, match="zero points are not in the middle"):
        dense_matrix(tmp_path / "gptq", READER)


def test_packing_of_an_older_compressed_tensors(original: Path, tmp_path: Path) -> None:
    """Ten 3-bit values to a word, two bits unused: as many words would be read as other numbers."""
    ready_made.gptq(original, tmp_path / "gptq", bits=3)
    given = read_checkpoint(tmp_path / "gptq")
    config: Any = given.quantization_config
    packed = {}
    for module in ready_made.block_matrices(original):
        made = gptq.repack({k: t.load() for k, t in given.module_tensors(module).items()}, config).tensors
        rows, columns = made["weight_shape"].tolist()
        packed[module] = made | {"weight_packed": torch.zeros(rows, -(-columns // 10), dtype=torch.int32)}
    ready_made.write(original, tmp_path / "old", packed, repacked_config(gptq.scheme(config), ["lm_head"]))
    with pytest.raises(ValueError, match="26 words a row where 256 values of 3 bits have 24: .* older compressed-ten"):
        dense_matrix(tmp_path / "old", WRITER)

"""Recipes on mixtures of experts: every expert's matrix is what the recipe says, and the router is left alone."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import ready_made
import torch
from models.families import tiny_family
from safetensors.torch import load_file
from tiny_model import changed_tensors, configured, logits_of, new

from aird.compression.compress import compress
from aird.compression.measure import measure
from aird.compression.ready_made import import_given, readable_form
from aird.compression.recipes.awq import AWQ
from aird.compression.recipes.bitsandbytes import BitsAndBytes
from aird.compression.recipes.fp8 import FP8
from aird.compression.recipes.gptq import GPTQ
from aird.compression.recipes.magnitude import Magnitude
from aird.compression.recipes.round_to_nearest import RoundToNearest
from aird.compression.recipes.sparsegpt import SparseGPT
from aird.compression.recipes.wanda import Wanda
from aird.models.checkpoint import read_checkpoint
from aird.models.dense import write_dense_copy
from aird.models.experts import fused_parameters, stored_matrices
from aird.models.importing import import_model
from aird.models.loading import load_model, load_structure
from aird.settings.compressions import CalibrationSettings, RecipeSettings
from aird.support.files import read_json

CALIBRATION = CalibrationSettings(prompt_set="harmless", count=6)
PROMPTS = [torch.randint(0, 256, (20,), generator=torch.Generator().manual_seed(seed)).tolist() for seed in range(6)]
# How a block stores its experts and its router.
STORED = {"mixtral": "block_sparse_moe", "qwen3_moe": "mlp"}
RECIPES: dict[str, RecipeSettings] = {
    "magnitude": Magnitude(sparsity=0.5),
    "magnitude-2-4": Magnitude(pattern="2:4"),
    "wanda": Wanda(sparsity=0.5, calibration=CALIBRATION),
    "sparsegpt": SparseGPT(sparsity=0.5, calibration=CALIBRATION),
    "round-4": RoundToNearest(weight_bits=4, group_size=32),
    "round-8": RoundToNearest(weight_bits=8, group_size=32),
    "gptq": GPTQ(group_size=32, calibration=CALIBRATION),
}


@pytest.mark.parametrize("family", STORED)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("magnitude", "round-4") else pytest.mark.thorough) for name in RECIPES],
)
def test_every_expert_is_compressed(family: str, name: str, tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    source, settings, output = tiny_folder(family), RECIPES[name], tmp_path / "output"
    compress(source, output, settings, PROMPTS if settings.needs_calibration else None)
    measured = measure(output, source)
    matrices = measured["matrices"]
    # Four of attention and three of each of four experts, in four blocks.
    assert len(matrices) == 4 * (4 + 3 * 4)
    experts = {module: found for module, found in matrices.items() if f"{STORED[family]}.experts" in module}
    assert len(experts) == 4 * 3 * 4
    for module, found in experts.items():
        assert found["relation"] == "same" and 0 < found["relative_error"] < 0.9, module
        if settings.target_sparsity is not None:
            assert found["sparsity"] == pytest.approx(0.5, abs=0.01) and found["stored_format"] == "dense"
        else:
            assert found["bits_per_weight"] < 10 and found["stored_format"] == "pack-quantized"
    routers = [f"model.layers.{block}.{STORED[family]}.gate.weight" for block in range(4)]
    before, after = load_file(source / "model.safetensors"), load_file(output / "model.safetensors")
    assert all(torch.equal(before[router], after[router]) for router in routers)
    # Transformers puts the experts together again, of the very matrices that were measured.
    dense = output
    if settings.target_sparsity is None:
        dense = new(tmp_path / "dense")
        write_dense_copy(output, dense, torch.bfloat16)
    model, of_dense, original = (load_model(folder, dtype=torch.float32) for folder in (output, dense, source))
    for name in fused_parameters(original):
        matrices = model.get_parameter(name)
        assert torch.equal(matrices, of_dense.get_parameter(name))
        assert 0 < (matrices - original.get_parameter(name)).norm() < 0.9 * matrices.norm()
    # In one type it runs, whatever types are stored.
    assert logits_of(model).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RoundToNearest(weight_bits=8, activation_bits=8), "does not round its experts' inputs"),
        (FP8(), "fp8 does not compress the experts of mixtral"),
        (BitsAndBytes(variant="nf4"), "bitsandbytes does not compress the experts of mixtral"),
        (AWQ(group_size=32, calibration=CALIBRATION), "awq does not compress the experts of mixtral"),
    ],
)
def test_a_recipe_that_would_leave_experts_alone_is_refused(
    settings: RecipeSettings, message: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"is a mixture of experts: .*{message}"):
        compress(tiny_folder("mixtral"), tmp_path / "output", settings, PROMPTS if settings.needs_calibration else None)
    assert not list(tmp_path.iterdir())


def test_experts_that_are_stored_as_one_tensor_are_refused(tmp_path: Path) -> None:
    tiny_family("gpt_oss").save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=r"it stores model\.layers\.0\.mlp\.experts\.gate_up_proj as one tensor"):
        compress(tmp_path / "source", tmp_path / "output", Magnitude(sparsity=0.5), None)


def test_scales_that_transformers_leaves_aside_are_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """It reports them in a table, and loads experts that are several hundred times too large."""
    ready_made.compressed_tensors(tiny_folder("qwen3_moe"), tmp_path / "given", "NVFP4A16")
    with pytest.raises(ValueError, match=r"experts\.\d\.\w+\.weight_global_scale \(and 47 more\), which Transformers"):
        load_model(tmp_path / "given")
    ready_made.compressed_tensors(tiny_folder("llama"), tmp_path / "dense", "NVFP4A16")
    # In its type, whatever this processor is faster in: compressed-tensors multiplies NVFP4 in no other.
    assert logits_of(load_model(tmp_path / "dense", dtype=torch.bfloat16)).isfinite().all()


def bitsandbytes(original: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Write what Transformers wrote while every expert had linear modules of its own."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, wanted = {}, {}
    for module, weight in ready_made.block_matrices(original).items():
        values, state = quantize_4bit(weight, quant_type="nf4")
        stored = state.as_dict(packed=True).items()
        packed[module] = {"weight": values, **{f"weight.{local}": tensor for local, tensor in stored}}
        wanted[module] = dequantize_4bit(values, state)
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    ready_made.write(original, folder, packed, said | {"bnb_4bit_compute_dtype": "bfloat16"})
    return wanted


def dense_experts(original: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Write packed attention beside experts that stay as they are."""
    wanted = ready_made.compressed_tensors(original, folder, "W4A16")
    plain = ready_made.block_matrices(original)
    with changed_tensors(folder) as tensors:
        for name in [name for name in tensors if ".experts." in name]:
            del tensors[name]
        for module in (module for module in plain if ".experts." in module):
            tensors[f"{module}.weight"] = wanted[module] = plain[module]
    quantisation = read_json(folder / "config.json")["quantization_config"]
    configured(folder, quantization_config=quantisation | {"ignore": ["lm_head", "re:.*experts.*"]})
    return wanted


MAKERS: dict[str, Callable[[Path, Path], dict[str, torch.Tensor]]] = {
    "awq": ready_made.awq,
    "gptq": ready_made.gptq,
    "gptq-asymmetric": lambda original, folder: ready_made.gptq(original, folder, symmetric=False),
    "fp8_block": lambda original, folder: ready_made.fp8_block(original, folder, 32, 32),
    "bitsandbytes": bitsandbytes,
    "dense experts": dense_experts,
}


@pytest.mark.parametrize(
    ("family", "form", "served_as"),
    [
        ("qwen3_moe", "W4A16", "as stored"),
        ("qwen3_moe", "W8A16", "as stored"),
        ("qwen3_moe", "FP8_DYNAMIC", "as stored"),
        ("mixtral", "FP8_DYNAMIC", "as stored"),
        ("qwen3_moe", "gptq", "repacked"),
        ("qwen3_moe", "NVFP4A16", "dense copy"),
        ("mixtral", "NVFP4A16", "dense copy"),
        ("qwen3_moe", "MXFP4A16", "dense copy"),
        ("qwen3_moe", "W4A16_ASYM", "dense copy"),
        ("qwen3_moe", "W8A8", "dense copy"),
        ("qwen3_moe", "FP8_BLOCK", "dense copy"),
        ("qwen3_moe", "fp8_block", "dense copy"),
        ("qwen3_moe", "awq", "dense copy"),
        ("mixtral", "awq", "dense copy"),
        ("qwen3_moe", "gptq-asymmetric", "dense copy"),
        ("qwen3_moe", "bitsandbytes", "dense copy"),
        ("qwen3_moe", "dense experts", "dense copy"),
    ],
)
def test_experts_of_a_ready_made_mixture(
    family: str, form: str, served_as: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Transformers computes with the very matrices that were packed, in every format that is read."""
    source, given, imported = tiny_folder(family), tmp_path / "given", tmp_path / "imported"
    default = functools.partial(ready_made.compressed_tensors, preset=form)
    wanted = MAKERS.get(form, default)(source, given)
    record = import_given(given, source, imported)
    assert record["served_as"] == readable_form(given) == served_as
    assert record["patchable"] and record["total"]["relative_error"] < 0.15
    model, structure = load_model(imported, dtype=torch.bfloat16), load_structure(source)
    for name in fused_parameters(model):
        stored = stored_matrices(structure, read_checkpoint(source))[name]
        experts = [
            [module for module in stored if f".{number}." in module.partition("experts")[2]] for number in range(4)
        ]
        # Gate above up, as Transformers puts them together.
        packed = torch.stack([torch.cat([wanted[module] for module in sorted(modules)]) for modules in experts])
        assert torch.equal(model.get_parameter(name), packed.to(model.dtype)), name
    if served_as == "dense copy":
        return
    write_dense_copy(imported, new(tmp_path / "dense"), torch.float32)
    expected = logits_of(load_model(tmp_path / "dense", dtype=torch.float32))
    # Inputs of attention are rounded to FP8, and so some tokens go to other experts.
    assert (logits_of(load_model(imported, dtype=torch.float32)) - expected).norm() < 0.2 * expected.norm()


@pytest.mark.thorough
def test_a_block_behind_the_last_one_is_left_alone(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """As GLM-4.5 and DeepSeek-V3 store their prediction of several tokens: imported, neither compressed nor compared."""
    plain, source = tiny_folder("qwen3_moe"), Path(shutil.copytree(tiny_folder("qwen3_moe"), tmp_path / "source"))
    with changed_tensors(source) as tensors:
        last = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.3.")}
        tensors |= {name.replace(".3.", ".4.", 1): 2 * tensor for name, tensor in last.items()}
        tensors["model.layers.4.eh_proj.weight"] = torch.ones(128, 256, dtype=torch.bfloat16)
    import_model(source, new(tmp_path / "imported"), "bfloat16")
    assert measure(tmp_path / "imported") == measure(plain)
    # The first keeps the block's tensors as they are, the second drops them.
    for recipe, kept in (("magnitude", True), ("round-4", False)):
        compressed = compress(tmp_path / "imported", tmp_path / recipe, RECIPES[recipe], None)
        assert compressed == compress(plain, tmp_path / f"{recipe}-plain", RECIPES[recipe], None)
        stored = read_checkpoint(tmp_path / recipe).tensors
        assert ("model.layers.4.eh_proj.weight" in stored) == kept
        import_given(tmp_path / recipe, tmp_path / "imported", tmp_path / f"{recipe}-given")
    for form in ("gptq", "awq"):
        MAKERS[form](source, tmp_path / form)
        record = import_given(tmp_path / form, plain, tmp_path / f"{form}-given")
        assert set(record["matrices"]) == set(measure(plain)["matrices"])
        model, of_plain = load_model(tmp_path / f"{form}-given"), load_model(plain)
        assert (logits_of(model) - logits_of(of_plain)).norm() < 0.5 * logits_of(of_plain).norm()

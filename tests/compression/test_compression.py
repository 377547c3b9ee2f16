"""Every compression recipe end to end on a tiny Llama, and the failures that libraries keep silent about."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models.families import tiny_configuration, tiny_family
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_model import build_tiny_model, changed_tensors, logits_of
from transformers import AutoModelForCausalLM

from aird.compression import oneshot
from aird.compression.compress import compress
from aird.compression.measure import check, check_stored_formats, fulfils_pattern, measure
from aird.compression.recipe import Recipe, RecipeInputs
from aird.compression.recipes import awq
from aird.compression.recipes.awq import AWQ
from aird.compression.recipes.bitsandbytes import BitsAndBytes
from aird.compression.recipes.fp8 import FP8
from aird.compression.recipes.gptq import GPTQ
from aird.compression.recipes.kv_cache import KeyValueCache
from aird.compression.recipes.magnitude import Magnitude, write, zero_smallest, zero_smallest_in_groups
from aird.compression.recipes.optimum_gptq import OptimumGPTQ
from aird.compression.recipes.round_to_nearest import RoundToNearest
from aird.compression.recipes.sparsegpt import SparseGPT
from aird.compression.recipes.wanda import Wanda
from aird.models.checkpoint import block_prefix, natural_order, read_checkpoint
from aird.models.loading import load_model as load_to_compute
from aird.models.matrices import dense_matrix, matrix_tensors
from aird.plugin import RECIPES
from aird.settings.compressions import CalibrationSettings, RecipeSettings
from aird.support.files import hash_folder

LAYERS = 4
CALIBRATION = CalibrationSettings(prompt_set="harmless", count=12)
READERS = {
    "input_layernorm": [f"self_attn.{name}_proj" for name in "qkv"],
    "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
}
OUTPUT_PROJECTION = "model.layers.1.self_attn.o_proj"

# Every matrix has 128 or 256 columns, so these are what each recipe must write, to the bit.
CASES: dict[str, tuple[RecipeSettings, str]] = {
    "magnitude": (Magnitude(sparsity=0.3), "dense"),
    "magnitude-2-4": (Magnitude(pattern="2:4"), "dense"),
    "wanda": (Wanda(sparsity=0.5, calibration=CALIBRATION), "dense"),
    "wanda-4-8": (Wanda(pattern="4:8", calibration=CALIBRATION), "dense"),
    "sparsegpt": (SparseGPT(sparsity=0.5, calibration=CALIBRATION), "dense"),
    "sparsegpt-2-4": (SparseGPT(pattern="2:4", calibration=CALIBRATION), "dense"),
    "round-4": (RoundToNearest(weight_bits=4, group_size=64), "pack-quantized"),
    "round-4-rows": (RoundToNearest(weight_bits=4), "pack-quantized"),
    "round-8": (RoundToNearest(weight_bits=8, group_size=32), "pack-quantized"),
    "w8a8": (RoundToNearest(weight_bits=8, activation_bits=8), "int-quantized"),
    "gptq": (GPTQ(group_size=32, calibration=CALIBRATION), "pack-quantized"),
    "awq": (AWQ(group_size=32, calibration=CALIBRATION), "pack-quantized"),
    "fp8": (FP8(), "float-quantized"),
    "int8": (BitsAndBytes(variant="int8"), "bitsandbytes-int8"),
    "nf4": (BitsAndBytes(variant="nf4"), "bitsandbytes-nf4"),
}


@pytest.fixture(scope="module")
def calibration() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = [12 + index % 5 for index in range(CALIBRATION.count)]
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture(scope="module")
def made(original: Path, calibration: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function from the name of a case to (checkpoint, measurements), made once."""
    folder = tmp_path_factory.mktemp("compressed")
    results: dict[str, tuple[Path, dict[str, Any]]] = {}

    def make(name: str) -> tuple[Path, dict[str, Any]]:
        if name not in results:
            settings = CASES[name][0]
            prompts = calibration if settings.needs_calibration else None
            results[name] = (folder / name, compress(original, folder / name, settings, prompts))
        return results[name]

    return make


def load_model(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", device_map="cpu").eval()


def effective_weight(module: Any) -> torch.Tensor:
    """Return what a loaded linear module computes with."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    return dequantize_bnb_weight(module.weight, getattr(module, "state", None))


def test_the_cache_recipe_keeps_every_weight(original: Path, tmp_path: Path) -> None:
    measurements = compress(original, tmp_path / "cache", KeyValueCache(dtype="fp8"), None)
    assert hash_folder(tmp_path / "cache") == hash_folder(original)
    assert (tmp_path / "cache/model.safetensors").samefile(original / "model.safetensors")
    assert {matrix["relative_error"] for matrix in measurements["matrices"].values()} == {0.0}
    assert measurements["total"]["bits_per_weight"] == 16


def test_a_cache_recipe_that_changed_a_weight_is_an_error(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = Recipe(KeyValueCache, "", lambda _, inputs, folder: write(Magnitude(sparsity=0.1), inputs, folder))
    monkeypatch.setattr("aird.compression.recipes.kv_cache.RECIPE", pruned)
    with pytest.raises(ValueError, match="changed weights that it must leave as they are"):
        compress(original, tmp_path / "cache", KeyValueCache(dtype="fp8"), None)


@pytest.mark.parametrize("name", CASES)
def test_recipe_writes_what_it_says(
    name: str, original: Path, calibration: list[list[int]], made: Any, tmp_path: Path
) -> None:
    before = hash_folder(original)
    settings, form = CASES[name]
    checkpoint, measurements = made(name)

    total = measurements["total"]
    assert total["formats"] == [form]
    assert total["weights"] == LAYERS * (128 * 128 * 2 + 128 * 64 * 2 + 128 * 256 * 3)
    assert len(measurements["matrices"]) == LAYERS * 7
    if settings.target_sparsity is not None:
        assert total["sparsity"] == pytest.approx(settings.target_sparsity, abs=1e-3)
        assert total["bits_per_weight"] == 16
    else:
        assert settings.storage_bits is not None
        assert settings.storage_bits < total["bits_per_weight"] < settings.storage_bits + 0.8

    rescaled = {module for module, matrix in measurements["matrices"].items() if matrix["relation"] != "same"}
    # AWQ leaves groups alone that no scale helps; scales well below the rounding error are not seen.
    norms = [read_checkpoint(folder).tensors for folder in (original, checkpoint)]
    spreads = {}
    for layer in range(LAYERS):
        for norm, readers in READERS.items():
            plain, scaled = (tensors[f"model.layers.{layer}.{norm}.weight"].load().float() for tensors in norms)
            factors = plain / scaled
            spreads |= dict.fromkeys(
                (f"model.layers.{layer}.{reader}" for reader in readers), factors.std() / factors.mean()
            )
    assert {name for name in spreads if spreads[name] > 0.1} <= rescaled <= {n for n in spreads if spreads[n] > 0.02}
    assert bool(rescaled) == settings.rescales_norms
    for module, matrix in measurements["matrices"].items():
        ours, theirs = (dense_matrix(folder, module).double() for folder in (checkpoint, original))
        expected = None if module in rescaled else float((ours - theirs).norm() / theirs.norm())
        assert matrix["relative_error"] == (expected and pytest.approx(expected, rel=1e-4))

    assert hash_folder(original) == before
    kept = {"chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    here = hash_folder(checkpoint)
    assert {file: here[file] for file in kept} == {file: before[file] for file in kept}
    assert here.keys() == before.keys()

    model = load_model(checkpoint)
    # compressed-tensors weights exist after the first forward pass only; on some processors
    # bitsandbytes then rearranges its 4-bit weights, so that its own dequantisation returns nonsense.
    if not form.startswith("bitsandbytes"):
        assert torch.isfinite(logits_of(model)).all()
    dense = {module: dense_matrix(checkpoint, module) for module in measurements["matrices"]}
    for module, weight in dense.items():
        assert torch.equal(effective_weight(model.get_submodule(module)), weight), module
    # A dense model with these matrices is the same model, but for rounded activations.
    served = load_model(original)
    for module, weight in dense.items():
        served.get_submodule(module).weight.data = weight.to(torch.bfloat16)
    if settings.rescales_norms:
        changed = {
            name: tensor.load() for name, tensor in read_checkpoint(checkpoint).tensors.items() if "norm" in name
        }
        served.load_state_dict(changed, strict=False)
    expected = logits_of(served)
    assert (logits_of(model) - expected).abs().mean() < 0.1 * expected.std()

    prompts = calibration if settings.needs_calibration else None
    compress(original, tmp_path / "again", settings, prompts)
    assert hash_folder(tmp_path / "again") == here


def test_bits_per_weight_are_those_stored(made: Any) -> None:
    matrix = made("round-4")[1]["matrices"][OUTPUT_PROJECTION]
    # 4 bits, a bf16 scale for 64 weights, and the shape in two 64-bit integers.
    assert matrix["bits_per_weight"] == 4 + 16 / 64 + 128 / 128**2
    assert matrix["stored_dtypes"] == {"weight_packed": "I32", "weight_scale": "BF16", "weight_shape": "I64"}
    assert matrix["sparse_bits_per_weight"] is None
    pruned = made("magnitude")[1]["matrices"][OUTPUT_PROJECTION]
    assert pruned["sparsity"] == math.floor(0.3 * 128**2) / 128**2
    assert pruned["sparse_bits_per_weight"] == pytest.approx(1 + 16 * (1 - pruned["sparsity"]))


def test_original_measures_as_dense(original: Path) -> None:
    total = measure(original)["total"]
    assert total["formats"] == ["dense"]
    assert total["bits_per_weight"] == total["sparse_bits_per_weight"] == 16
    assert total["sparsity"] < 0.001


def test_wanda_zeroes_the_smallest_products_of_each_row(
    original: Path, calibration: list[list[int]], made: Any
) -> None:
    """The first matrix sees the same inputs in the original, so its mask can be computed by hand."""
    module = "model.layers.0.self_attn.q_proj"
    model = load_to_compute(original)
    squares = torch.zeros(128)

    def add(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        squares.add_(arguments[0][0].float().square().sum(dim=0))

    model.get_submodule(module).register_forward_pre_hook(add)
    with torch.no_grad():
        for prompt in calibration:
            model(input_ids=torch.tensor([prompt]), use_cache=False)
    metric = dense_matrix(original, module).float().abs() * squares.sqrt()
    zeros = dense_matrix(made("wanda")[0], module) == 0
    kept_least = metric.masked_fill(zeros, torch.inf).min(dim=1).values
    pruned_most = metric.masked_fill(~zeros, -torch.inf).max(dim=1).values
    assert (zeros.sum(dim=1) == 64).all()
    assert (pruned_most <= kept_least * (1 + 1e-4)).all()


def test_awq_scales_norms_but_no_input_of_a_residual_writer(original: Path, made: Any) -> None:
    """Writers keep the original's inputs, so their matrices can be compared; the other scales cancel in the norms."""
    checkpoint, measurements = made("awq")
    norm = "model.layers.1.input_layernorm.weight"
    before, after = read_checkpoint(original).tensors[norm].load(), read_checkpoint(checkpoint).tensors[norm].load()
    scales = before.float() / after.float()
    assert scales.max() > 1.1 * scales.min()
    reader = "model.layers.1.self_attn.q_proj"
    for module, factors in ((OUTPUT_PROJECTION, torch.ones(128)), (reader, scales)):
        expected = dense_matrix(original, module).float() * factors
        error = (dense_matrix(checkpoint, module).float() - expected).abs()
        # Half a step of the 16 values between the least and the greatest weight of 32, and rounded scales.
        groups = expected.reshape(128, -1, 32)
        step = (groups.amax(-1) - groups.amin(-1)).repeat_interleave(32, dim=1) / 15
        assert (error <= 0.52 * step + 0.01 * expected.abs()).all(), module
    settings = CASES["awq"][0]
    check(measurements, settings, measure(original))
    for name in ("model.norm.weight", "model.embed_tokens.weight"):
        altered = measurements | {"other_tensors": measurements["other_tensors"] | {name: "altered"}}
        with pytest.raises(ValueError, match=f"must leave as it is: {name}"):
            check(altered, settings, measure(original))
    with pytest.raises(ValueError, match="must leave as it is: .*input_layernorm"):
        check(measurements, CASES["gptq"][0], measure(original))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the memory can be pinned")
def test_awq_still_pins_memory_for_a_gpu_that_is_not_there(
    original: Path, calibration: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When this fails, the trick can go (docs/tricks.md)."""
    monkeypatch.setattr(awq, "_pinning_no_memory", contextlib.nullcontext)
    with pytest.raises(RuntimeError, match="accelerator"):
        compress(original, tmp_path / "awq", CASES["awq"][0], calibration)


@pytest.mark.thorough
@pytest.mark.skipif("AIRD_GPTQ_PYTHON" not in os.environ, reason="needs the Python of envs/gptq.lock.txt")
@pytest.mark.parametrize("group_size", [32, None])
def test_optimum_gptq_in_its_own_environment(
    group_size: int | None, original: Path, calibration: list[list[int]], tmp_path: Path
) -> None:
    """Real GPTQModel's integers are those that Transformers computes with, and closer than rounding for its inputs."""
    settings = OptimumGPTQ(group_size=group_size, calibration=CALIBRATION)
    with pytest.raises(ValueError, match="needs the Python of the environment gptq"):
        compress(original, tmp_path / "none", settings, calibration)
    python = Path(os.environ["AIRD_GPTQ_PYTHON"])
    measurements = compress(original, tmp_path / "gptq", settings, calibration, python)
    assert measurements["total"]["formats"] == ["pack-quantized"]
    assert 4 < measurements["total"]["bits_per_weight"] < 4.8
    model = load_model(tmp_path / "gptq")
    compressed = logits_of(model)
    for module in measurements["matrices"]:
        assert torch.equal(model.get_submodule(module).weight, dense_matrix(tmp_path / "gptq", module)), module
    rounding = RoundToNearest(weight_bits=4, group_size=group_size)
    compress(original, tmp_path / "round", rounding, None)
    expected, gptq, rounded = (
        logits_of(each, torch.tensor([calibration[0]]))
        for each in (load_model(original), model, load_model(tmp_path / "round"))
    )
    assert torch.isfinite(compressed).all()
    assert (gptq - expected).square().mean() < (rounded - expected).square().mean()


def test_other_environment_that_fails(original: Path, calibration: list[list[int]], tmp_path: Path) -> None:
    """An environment without GPTQModel is an error with its output, and leaves no checkpoint."""
    settings = OptimumGPTQ(group_size=32, calibration=CALIBRATION)
    empty = tmp_path / "python"
    empty.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    empty.chmod(0o755)
    with pytest.raises(RuntimeError, match="No module named 'torch'"):
        compress(original, tmp_path / "output", settings, calibration, empty)
    assert not (tmp_path / "output").exists()


def test_zero_smallest_is_exact_with_ties() -> None:
    weight = torch.tensor([[1.0, -1.0, 1.0, 2.0], [0.0, 3.0, -1.0, 1.0]])
    pruned = zero_smallest(weight, 0.4)
    assert (pruned == 0).sum() == math.floor(0.4 * 8)
    assert pruned.tolist() == [[0.0, 0.0, 1.0, 2.0], [0.0, 3.0, -1.0, 1.0]]
    assert zero_smallest(weight, 0.1).tolist() == weight.tolist()


def test_zero_smallest_in_groups_keeps_the_largest() -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0]])
    pruned = zero_smallest_in_groups(weight, "2:4")
    assert pruned.tolist() == [[0.0, -4.0, 3.0, 0.0, 0.0, 0.0, 5.0, 5.0]]
    assert fulfils_pattern(pruned, "2:4") and fulfils_pattern(pruned, "4:8")
    assert not fulfils_pattern(torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]]), "2:4")


def test_biases_untied_head_and_shards(tmp_path: Path) -> None:
    whole = build_tiny_model(tmp_path / "whole", family="qwen2")
    source = tmp_path / "source"
    shutil.copytree(whole, source)
    (source / "model.safetensors").unlink()
    load_model(whole).save_pretrained(source, max_shard_size="300KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    for settings in (Magnitude(sparsity=0.3), RoundToNearest(weight_bits=4, group_size=32)):
        output = tmp_path / type(settings).__name__
        measurements = compress(source, output, settings, None)
        assert {"lm_head.weight", "model.layers.0.self_attn.q_proj.bias"} <= measurements["other_tensors"].keys()
        model = load_model(output)
        assert torch.isfinite(logits_of(model)).all()
        assert torch.equal(model.get_submodule(OUTPUT_PROJECTION).weight, dense_matrix(output, OUTPUT_PROJECTION))
    sharded = matrix_tensors(tmp_path / "Magnitude", OUTPUT_PROJECTION)
    file, tensor = sharded["weight"]
    with safe_open(tmp_path / "Magnitude" / file, framework="pt") as stream:
        assert tensor in stream.keys()  # noqa: SIM118 - safe_open is no mapping


def test_matrix_tensors_and_absent_modules(made: Any) -> None:
    checkpoint, _ = made("round-4")
    file = "model.safetensors"
    assert matrix_tensors(checkpoint, OUTPUT_PROJECTION) == {
        local: (file, f"{OUTPUT_PROJECTION}.{local}") for local in ("weight_packed", "weight_scale", "weight_shape")
    }
    assert dense_matrix(checkpoint, "model.embed_tokens").shape[1] == 128
    for absent in ("model.layers.1.self_attn.out_proj", "model.layers.1.self_attn"):
        with pytest.raises(ValueError, match=rf"no weight matrix of {absent}; similar names: model\.layers\.1\."):
            dense_matrix(checkpoint, absent)


def test_trap_target_that_matches_nothing(original: Path, calibration: list[list[int]], tmp_path: Path) -> None:
    options = {"sparsity": 0.5, "targets": "__ALL_PRUNABLE__"}
    (tmp_path / "config.json").write_bytes((original / "config.json").read_bytes())
    inputs = RecipeInputs(read_checkpoint(original), calibration)
    oneshot.apply("pruning.wanda", "WandaPruningModifier", options, inputs, tmp_path)
    with pytest.raises(ValueError, match="sparsity is off: all matrices together .* instead of 0.5"):
        check(measure(tmp_path), CASES["wanda"][0], measure(original))


def test_a_pattern_keeps_the_zeros_that_the_original_had(original: Path, tmp_path: Path) -> None:
    """Weights decoded from few bits hold exact zeros: a group of four with three of them keeps three."""
    dense, pruned = tmp_path / "dense", tmp_path / "pruned"
    shutil.copytree(original, dense)
    tensors = load_file(dense / "model.safetensors")
    name = f"{OUTPUT_PROJECTION}.weight"
    for first, step in ((0, 4), (1, 8), (2, 8)):  # three zeros in every other group, one in the rest
        tensors[name][:, first::step] = 0
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    settings = Magnitude(pattern="2:4")
    measured = compress(dense, pruned, settings, None)
    assert measured["matrices"][OUTPUT_PROJECTION]["sparsity"] == pytest.approx(0.625)
    other = measure(original)  # which has none of these zeros
    with pytest.raises(ValueError, match=r"sparsity is off: .*o_proj"):
        check(measure(pruned), settings, other)


def test_trap_loaded_edited_and_saved(original: Path, made: Any, tmp_path: Path) -> None:
    checkpoint, _ = made("w8a8")
    model = load_model(checkpoint)
    logits_of(model)
    with torch.no_grad():
        model.get_submodule(OUTPUT_PROJECTION).weight.mul_(0.5)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="disagree with config.json: .* config.json says int-quantized"):
        check(measure(tmp_path), CASES["w8a8"][0], measure(original))
    with pytest.raises(ValueError, match="disagree with config.json"):
        check_stored_formats(measure(tmp_path))


def test_trap_algorithm_that_gives_up(
    original: Path, calibration: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr(torch.linalg, "cholesky", fail)
    with pytest.raises(ValueError, match="calibrate on more tokens"):
        compress(original, tmp_path / "output", CASES["sparsegpt"][0], calibration)
    assert not (tmp_path / "output").exists()


def test_trap_touched_head_and_embeddings(original: Path, tmp_path: Path) -> None:
    settings = Magnitude(sparsity=0.3)
    compress(original, tmp_path / "made", settings, None)
    with changed_tensors(tmp_path / "made") as tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.embed_tokens.weight"][3, 5] += 1
    with pytest.raises(ValueError, match=r"must leave as it is: lm_head.weight and 1 more"):
        check(measure(tmp_path / "made"), settings, measure(original))


def test_check_refuses_what_was_not_asked_for(original: Path, made: Any) -> None:
    reference = measure(original)
    _, dense = made("magnitude")
    with pytest.raises(ValueError, match="pattern 2:4 is broken"):
        check(dense, CASES["magnitude-2-4"][0], reference)
    with pytest.raises(ValueError, match="not stored as the recipe says.*bits per weight are off"):
        check(dense, CASES["round-4"][0], reference)
    with pytest.raises(ValueError, match="bits per weight are off"):
        check(made("round-8")[1], CASES["round-4"][0], reference)
    with pytest.raises(ValueError, match="other matrices than the original"):
        check(dense | {"matrices": {}}, CASES["magnitude"][0], reference)


def test_group_size_must_divide_columns(original: Path, tmp_path: Path) -> None:
    message = r"group_size 96 does not divide the 256 columns of model.layers.0.mlp.down_proj.*: 16, 32, 64, 128$"
    for settings in (
        RoundToNearest(weight_bits=4, group_size=96),
        GPTQ(group_size=96, calibration=CALIBRATION),
    ):
        prompts = [[1]] * CALIBRATION.count if settings.needs_calibration else None
        with pytest.raises(ValueError, match=message):
            compress(original, tmp_path / "output", settings, prompts)
    assert not (tmp_path / "output").exists()


def test_requests_are_checked_before_anything_runs(original: Path, made: Any, tmp_path: Path) -> None:
    wanda = CASES["wanda"][0]
    with pytest.raises(ValueError, match="ask for 12 calibration prompts or sequences, given: none"):
        compress(original, tmp_path / "output", wanda, None)
    with pytest.raises(ValueError, match="given: 2"):
        compress(original, tmp_path / "output", wanda, [[1], [2]])
    with pytest.raises(ValueError, match="prompt 3 has no tokens"):
        compress(original, tmp_path / "output", wanda, [[1]] * 3 + [[]] + [[1]] * 8)
    with pytest.raises(ValueError, match="no calibration prompts; pass None"):
        compress(original, tmp_path / "output", FP8(), [[1]])
    with pytest.raises(ValueError, match="quantised already"):
        compress(made("fp8")[0], tmp_path / "output", FP8(), None)
    assert list(tmp_path.iterdir()) == []


def test_incomplete_checkpoints_are_named(original: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no config.json"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')
    with pytest.raises(ValueError, match="needs its weights as safetensors"):
        read_checkpoint(tmp_path)
    index = {"weight_map": {"model.norm.weight": "model.safetensors", "absent.weight": "model.safetensors"}}
    (tmp_path / "model.safetensors").write_bytes((original / "model.safetensors").read_bytes())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lists absent.weight"):
        read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"one numbered list of 3 decoder blocks .*'h\.\*': 2"):
        block_prefix(["h.0.attn.weight", "h.1.attn.weight"], {"n_layer": 3})
    with pytest.raises(ValueError, match=r"one numbered list of 3 decoder blocks .*'h\.\*': 4, 'g\.\*': 5"):
        block_prefix(
            [f"{name}.{index}.w" for name, count in (("h", 4), ("g", 5)) for index in range(count)], {"n_layer": 3}
        )
    # One of that very number goes before one that goes on, as beside a model of images.
    names = [f"{name}.{index}.weight" for name, count in (("h", 3), ("g", 5)) for index in range(count)]
    assert block_prefix(names, {"n_layer": 3}) == "h." and block_prefix(names[3:], {"n_layer": 3}) == "g."
    for family in ("mpt", "gpt_neo", "bloom", "codegen", "llama"):  # as their config.json files have it
        config = json.loads(tiny_configuration(family).to_json_string(use_diff=False))
        assert block_prefix([f"h.{index}.weight" for index in range(4)], config) == "h."


def test_blocks_are_in_natural_order() -> None:
    assert sorted(["h.10.mlp", "h.2.mlp", "h.2.attn"], key=natural_order) == [
        "h.2.attn",
        "h.2.mlp",
        "h.10.mlp",
    ]


def test_settings_have_one_representation_and_descriptions() -> None:
    by_pattern = RECIPES.parse({"recipe": "magnitude", "pattern": "4:8"})
    both = RECIPES.parse({"recipe": "magnitude", "pattern": "4:8", "sparsity": 0.5})
    assert by_pattern == both and by_pattern.target_sparsity == 0.5
    for name in RECIPES.names():
        fields = RECIPES.load(name).settings.model_fields
        assert all(field.description for key, field in fields.items() if key != "recipe")


def test_what_no_recipe_handles_is_refused(tmp_path: Path) -> None:
    """AWQ would scale OLMo 2 by the names of Llama's norms."""
    source = tmp_path / "olmo2"
    tiny_family("olmo2").save_pretrained(source)
    settings = AWQ(weight_bits=4, group_size=32, calibration={"prompt_set": "any", "split": "train", "count": 2})
    with pytest.raises(ValueError, match="does not know Olmo2ForCausalLM"):
        compress(source, tmp_path / "output", settings, [[1, 2, 3]] * 2)
    assert not (tmp_path / "output").exists()

"""Edits as an adapter and merged into a checkpoint: the same model, and nothing else touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_float32
from models.families import tiny_configuration, tiny_family
from patches import adapter_of, merged, random_edits, saved_direction, unit_vector
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_model import logits_of, new
from transformers import AutoModelForCausalLM, AutoTokenizer

from aird.compression.compress import compress
from aird.compression.recipes.magnitude import Magnitude
from aird.compression.recipes.round_to_nearest import RoundToNearest
from aird.models.blocks import takes_adapter
from aird.models.loading import load_model, load_tokenizer
from aird.models.matrices import dense_matrix, matrix_tensors
from aird.models.structure import writer_modules
from aird.models.tuning import with_lora
from aird.patching.adapters import load_adapter, merge, save_lora
from aird.patching.edits import Edit
from aird.patching.method import PatchInputs
from aird.patching.methods import parse_patch
from aird.patching.patch_files import make_patch
from aird.support.files import hash_folder

MODULES = ("model.layers.1.self_attn.o_proj", "model.layers.2.mlp.down_proj")


@pytest.fixture
def edits() -> list[Edit]:
    """Return two edits so strong that what they change stands out from rounding."""
    return random_edits(MODULES, 2.0)


@pytest.fixture(scope="module")
def compressed(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a name to a quantised checkpoint, made once."""
    settings = {
        "w4a16": RoundToNearest(weight_bits=4, group_size=64),
        "w8a8": RoundToNearest(weight_bits=8, group_size=None, activation_bits=8),
    }
    root = tmp_path_factory.mktemp("compressed")

    def make(name: str) -> Path:
        if not (root / name).exists():
            compress(original, root / name, settings[name], None)
        return root / name

    return make


def save_float32(source: Path, folder: Path, shard: str = "50GB") -> Path:
    load_float32(source).save_pretrained(folder, max_shard_size=shard)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="cpu").eval()


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of all shards, and check that no two shards hold the same one."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found = load_file(path)
        assert not found.keys() & tensors.keys()
        tensors |= found
    return tensors


def bytes_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("rank", [1, 3])
def test_adapter_round_trip(rank: int, edits: list[Edit], tmp_path: Path) -> None:
    edits = [replace(edit, up=torch.randn(128, rank), down=torch.randn(rank, edit.down.shape[1])) for edit in edits]
    loaded = load_adapter(adapter_of(edits, tmp_path / "adapter"))
    assert [edit.module for edit in loaded] == list(MODULES)
    for edit, expected in zip(loaded, edits, strict=True):
        assert torch.equal(edit.up, expected.up) and torch.equal(edit.down, expected.down)


def test_edits_may_share_a_column(edits: list[Edit], tmp_path: Path) -> None:
    shared = [replace(edit, up=edits[0].up) for edit in edits]
    loaded = load_adapter(adapter_of(shared, tmp_path / "adapter"))
    assert all(torch.equal(edit.up, edits[0].up) for edit in loaded)


def test_another_adapter_is_refused(edits: list[Edit], tmp_path: Path) -> None:
    folder = adapter_of(edits, tmp_path / "adapter")
    path = folder / "adapter_config.json"
    configuration = json.loads(path.read_text(encoding="utf-8"))
    for change in ({"use_dora": True}, {"rank_pattern": {"o_proj": 4}}, {"bias": "all"}, {"peft_type": "IA3"}):
        path.write_text(json.dumps(configuration | change), encoding="utf-8")
        with pytest.raises(ValueError, match="no plain LoRA adapter"):
            load_adapter(folder)


def renamed(edits: list[Edit], folder: Path, change: Callable[[str], str], **settings: Any) -> Path:
    """Write the edits' adapter with other names of tensors and other settings."""
    adapter = adapter_of(edits, folder)
    tensors = {change(name): tensor for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    configuration = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps(configuration | settings), encoding="utf-8")
    return adapter


def test_an_adapter_that_would_not_land_is_refused(original: Path, edits: list[Edit], tmp_path: Path) -> None:
    """PEFT finds the modules by the ends of their names, and no weights under the names of a wrapper."""
    wrapped = renamed(
        edits,
        tmp_path / "adapter",
        lambda name: name.replace("model.layers", "model.language_model.layers"),
        target_modules=["o_proj", "down_proj"],
    )
    with pytest.raises(ValueError, match="holds no weights for some modules that it says it changes"):
        load_model(original, wrapped)


def test_what_is_no_matrix_of_an_adapter_is_not_lost(edits: list[Edit], tmp_path: Path) -> None:
    first = "base_model.model.model.layers.1.self_attn.o_proj"
    bias = renamed(
        edits, tmp_path / "bias", lambda name: name.replace(f"{first}.lora_A.weight", f"{first}.lora_B.bias")
    )
    embedding = renamed(
        edits, tmp_path / "embedding", lambda name: name.replace(f"{first}.lora_A.weight", "embed.lora_embedding_A")
    )
    for adapter in (bias, embedding):
        with pytest.raises(ValueError, match="holds more than the two matrices of each module"):
            load_adapter(adapter)


def test_an_adapter_of_higher_rank_merges_as_peft_runs_it(original: Path, tmp_path: Path) -> None:
    base = save_float32(original, tmp_path / "base")
    torch.manual_seed(0)
    model = get_peft_model(
        load(base), LoraConfig(r=4, lora_alpha=12, target_modules=list(MODULES), init_lora_weights=False)
    )
    save_lora(model, new(tmp_path / "adapter"), "base")
    expected = logits_of(model)
    assert (expected - logits_of(load(base))).abs().max() > 0.1
    updates = load_adapter(tmp_path / "adapter")
    assert [update.module for update in updates] == list(MODULES)
    assert {update.up.shape[1] for update in updates} == {4}
    torch.testing.assert_close(logits_of(load_model(base, tmp_path / "adapter")), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits_of(load(merged(base, updates, tmp_path / "merged"))), expected, atol=1e-4, rtol=0)


def test_adapter_by_peft_equals_edited_weights_and_merged_checkpoint(
    original: Path, edits: list[Edit], tmp_path: Path
) -> None:
    base = save_float32(original, tmp_path / "base")
    adapter = adapter_of(edits, tmp_path / "adapter")
    by_hand = load(base)
    plain = logits_of(by_hand)
    for edit in edits:
        weight = by_hand.get_submodule(edit.module).weight
        weight.data = (weight.double() + edit.up.double() @ edit.down.double()).float()
    expected = logits_of(by_hand)
    assert (expected - plain).abs().max() > 0.3

    with_adapter = PeftModel.from_pretrained(load(base), str(adapter))
    adapted = {name for name, module in with_adapter.get_base_model().named_modules() if hasattr(module, "lora_A")}
    assert adapted == set(MODULES)
    torch.testing.assert_close(logits_of(with_adapter), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits_of(load_model(base, adapter)), expected, atol=1e-4, rtol=0)

    checkpoint = merged(base, edits, tmp_path / "merged")
    torch.testing.assert_close(logits_of(load(checkpoint)), expected, atol=1e-5, rtol=0)
    assert load_tokenizer(checkpoint)("Hello")["input_ids"] == load_tokenizer(base)("Hello")["input_ids"]


def test_bfloat16_checkpoint(tiny_folder: Callable[[str], Path], edits: list[Edit], tmp_path: Path) -> None:
    base = tiny_folder("qwen2")
    before = hash_folder(base)
    checkpoint = merged(base, edits, tmp_path / "merged")
    adapter = adapter_of(edits, tmp_path / "adapter")
    plain, with_adapter, of_merged = (
        logits_of(model) for model in (load(base), load_model(base, adapter), load(checkpoint))
    )
    assert load(checkpoint).dtype == torch.bfloat16
    effect = (with_adapter - plain).abs().mean()
    assert effect > 0.1
    assert (of_merged - with_adapter).abs().mean() < 0.1 * effect
    assert hash_folder(base) == before
    # All files of the description come along unchanged.
    after = hash_folder(checkpoint)
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == {"model.safetensors"}


def test_merged_matrix_is_rounded_once(original: Path, edits: list[Edit], tmp_path: Path) -> None:
    checkpoint = merged(original, edits, tmp_path / "merged")
    for edit in edits:
        old = stored_tensors(original)[f"{edit.module}.weight"].double()
        exact = old + edit.up.double() @ edit.down.double()
        found = stored_tensors(checkpoint)[f"{edit.module}.weight"]
        assert found.dtype == torch.bfloat16
        # Half a unit in the last of eight places; the product is made in float32.
        assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


def test_sharded_checkpoint(tiny_folder: Callable[[str], Path], edits: list[Edit], tmp_path: Path) -> None:
    base = save_float32(tiny_folder("qwen2"), tmp_path / "base", shard="500KB")
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(shards) > 3
    before = hash_folder(base)
    checkpoint = merged(base, edits, tmp_path / "merged")
    assert hash_folder(base) == before

    old, new = stored_tensors(base), stored_tensors(checkpoint)
    assert old.keys() == new.keys()
    changed = {name for name in old if bytes_of(old[name]) != bytes_of(new[name])}
    assert changed == {f"{module}.weight" for module in MODULES}

    index = json.loads((checkpoint / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index == json.loads((base / "model.safetensors.index.json").read_text(encoding="utf-8"))
    after = hash_folder(checkpoint)
    touched = {index["weight_map"][f"{module}.weight"] for module in MODULES}
    assert {name for name in before if before[name] != after.get(name)} - touched <= {"model.safetensors.index.json"}
    # Untouched shards are not even copied.
    for name in shards:
        assert (checkpoint / name).samefile(base / name) == (name not in touched)

    with_adapter = load_model(base, adapter_of(edits, tmp_path / "adapter"))
    torch.testing.assert_close(logits_of(load(checkpoint)), logits_of(with_adapter), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["w4a16", "w8a8"])
def test_quantised_checkpoint(name: str, compressed: Callable[[str], Path], edits: list[Edit], tmp_path: Path) -> None:
    base = compressed(name)
    before = hash_folder(base)
    adapter = adapter_of(edits, tmp_path / "adapter")
    checkpoint = merged(base, edits, tmp_path / "merged")
    assert hash_folder(base) == before

    old, new = stored_tensors(base), stored_tensors(checkpoint)
    packed = {tensor for module in MODULES for _, tensor in matrix_tensors(base, module).values()}
    assert len(packed) >= 4  # at least the weight and its scales, for each
    dense = {f"{module}.weight" for module in MODULES}
    assert new.keys() == (old.keys() - packed) | dense
    untouched = old.keys() - packed
    assert [tensor for tensor in untouched if bytes_of(old[tensor]) != bytes_of(new[tensor])] == []
    for edit in edits:
        exact = dense_matrix(base, edit.module).double() + edit.up.double() @ edit.down.double()
        stored = new[f"{edit.module}.weight"]
        assert stored.dtype == torch.bfloat16
        torch.testing.assert_close(stored.double(), exact, atol=1e-6, rtol=2**-8)

    configuration, original = (
        json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (checkpoint, base)
    )
    ignored = configuration["quantization_config"].pop("ignore")
    assert set(ignored) == set(original["quantization_config"].pop("ignore")) | set(MODULES)
    assert "lm_head" in ignored
    assert configuration == original

    plain, with_adapter, of_merged = (
        logits_of(model) for model in (load(base), load_model(base, adapter), load(checkpoint))
    )
    effect = (with_adapter - plain).abs().mean()
    assert effect > 0.1
    # Left: the edited matrices are rounded to bfloat16, and under W8A8 their inputs no more to 8 bits.
    assert (of_merged - with_adapter).abs().mean() < 0.15 * effect


def test_a_quantised_checkpoint_in_shards(compressed: Callable[[str], Path], edits: list[Edit], tmp_path: Path) -> None:
    """The index lists the dense matrix and no longer the packed tensors, also where a scale lies in another shard."""
    base = new(tmp_path / "base")
    source = compressed("w4a16")
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (base / path.name).write_bytes(path.read_bytes())
    tensors = stored_tensors(source)
    halves = {
        "model-1.safetensors": {name for name in tensors if not name.endswith("_scale")},
        "model-2.safetensors": {name for name in tensors if name.endswith("_scale")},
    }
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, base / file, metadata={"format": "pt"})
    weight_map = {name: file for file, names in halves.items() for name in names}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    checkpoint = merged(base, edits, tmp_path / "merged")
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    found = {}
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "pt") as reader:
            found.update(dict.fromkeys(reader.keys(), path.name))
            assert reader.metadata() == {"format": "pt"}
    assert index == found
    assert {name for name in index if name.startswith(MODULES[0])} == {f"{MODULES[0]}.weight"}
    torch.testing.assert_close(
        logits_of(load(checkpoint)), logits_of(load(merged(source, edits, tmp_path / "one-file"))), atol=0, rtol=0
    )


def test_filled_zeros_are_counted(original: Path, edits: list[Edit], tmp_path: Path) -> None:
    base = tmp_path / "pruned"
    compress(original, base, Magnitude(sparsity=0.5), None)
    half = replace(edits[0], down=torch.where(torch.arange(128) < 64, edits[0].down, 0))
    filled = merge(base, [half], new(tmp_path / "merged"))
    old = stored_tensors(base)[f"{MODULES[0]}.weight"]
    zeros = old == 0
    assert zeros.double().mean().item() == pytest.approx(0.5, abs=1e-3)
    # The edit reads the first half of the inputs only, so it fills the zeros of those columns.
    expected = zeros[:, :64].sum().item() / zeros.sum().item()
    assert filled == {MODULES[0]: pytest.approx(expected, abs=1e-6)}
    assert merge(original, [], new(tmp_path / "dense")) == {}


def test_a_module_that_does_not_exist(original: Path, edits: list[Edit], tmp_path: Path) -> None:
    wrong = replace(edits[0], module="model.layers.9.self_attn.o_proj")
    with pytest.raises(ValueError, match=r"model\.layers\.9\.self_attn\.o_proj"):
        merge(original, [wrong], tmp_path)


@torch.no_grad()
def test_what_peft_puts_no_adapter_on_stays_unedited(tmp_path: Path) -> None:
    """Falcon-H1's state space; attention and MLP beside it are edited, and the patch loads."""
    base = tmp_path / "base"
    tiny_family("falcon_h1").save_pretrained(base)
    files = saved_direction(tmp_path, unit_vector(width=64))
    settings = parse_patch({"method": "scale", "alpha": 8.0, "blocks": [0, 1]})
    inputs = PatchInputs("small", base, base, files)
    record = make_patch(settings, inputs, tmp_path / "adapter", tmp_path / "statistics.json")
    assert [edit["module"] for edit in record["edits"]] == [
        f"model.layers.{block}.{name}" for block in (0, 1) for name in ("self_attn.o_proj", "feed_forward.down_proj")
    ]
    assert record["not_edited"] == [
        f"model.layers.{block}.mamba.out_proj writes for a state space: PEFT puts no adapter on it in this model type"
        for block in (0, 1)
    ]
    ids = torch.arange(3, 11).unsqueeze(0)
    plain, patched = (load_model(base, *more, dtype=torch.float32) for more in ((), (tmp_path / "adapter",)))
    assert (patched(input_ids=ids).logits - plain(input_ids=ids).logits).abs().max() > 1e-3
    # Directions are ablated there all the same.
    assert plain.model.layers[0].mamba.out_proj in writer_modules(plain)
    # A LoRA on all linear modules, as of the refusal tuning.
    block = with_lora(plain, parse_patch({"method": "lora", "rank": 2})).get_base_model().model.layers[3].mamba
    assert isinstance(block.in_proj, LoraLayer) and not isinstance(block.out_proj, LoraLayer)


@pytest.mark.parametrize("family", ["falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"])
def test_peft_takes_exactly_the_modules_that_are_said_to_take_an_adapter(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_configuration(family))
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    (without, *_) = [name for name in linear if not takes_adapter(model, name)]
    get_peft_model(model, LoraConfig(target_modules=[name for name in linear if takes_adapter(model, name)]))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_configuration(family))
    with pytest.raises(ValueError, match="incompatible with Mamba"):
        get_peft_model(model, LoraConfig(target_modules=[without]))

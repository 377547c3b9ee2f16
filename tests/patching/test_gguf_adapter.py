"""A patch as a GGUF LoRA: what the file holds, what is refused, and that llama.cpp computes what Transformers does."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import ready_made
import torch
from patches import adapter_of, random_edits
from tiny_model import new

from aird.evaluation.engine import ServerSettings
from aird.evaluation.engines.llama_cpp import LlamaCpp
from aird.evaluation.parity import first_token_logprobs
from aird.models.gguf_file import read_gguf
from aird.models.gguf_import import dequantise_gguf
from aird.models.loading import load_model
from aird.patching.adapters import write_adapter
from aird.patching.edits import Edit
from aird.patching.gguf_adapter import write_gguf_adapter

ATTENTION, MLP = "model.layers.1.self_attn.o_proj", "model.layers.2.mlp.down_proj"


def decoded(original: Path, root: Path, kind: str) -> Path:
    """Write a tiny model as `model.gguf` into a folder of its decoded float32 weights, and return that."""
    folder = new(root / "decoded")
    ready_made.gguf_file(original, root / "model.gguf", [kind])
    dequantise_gguf(root / "model.gguf", folder, torch.float32)
    return (root / "model.gguf").rename(folder / "model.gguf").parent


@pytest.fixture(scope="module")
def folder(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoded(original, tmp_path_factory.mktemp("gguf"), "Q8_0")


def edits(modules: list[str]) -> list[Edit]:
    return random_edits(modules, 0.125)


def test_what_the_file_holds(folder: Path, tmp_path: Path) -> None:
    patch = adapter_of(edits([ATTENTION, MLP]), tmp_path / "adapter")
    output = tmp_path / "adapter.gguf"
    edited = write_gguf_adapter(patch, folder, read_gguf(folder / "model.gguf"), output)
    assert sorted(edited) == sorted([ATTENTION, MLP])
    reader = gguf.GGUFReader(output)
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert values == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 1.0,
    }
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    names = {ATTENTION: "blk.1.attn_output.weight", MLP: "blk.2.ffn_down.weight"}
    assert tensors.keys() == {f"{name}.{end}" for name in names.values() for end in ("lora_a", "lora_b")}
    for edit in edits([ATTENTION, MLP]):
        name = names[edit.module]
        change = tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]
        torch.testing.assert_close(change, edit.matrix(), rtol=1e-6, atol=1e-7)


def test_an_adapter_of_a_higher_rank_keeps_its_scale(folder: Path, tmp_path: Path) -> None:
    patch = new(tmp_path / "adapter")
    up, down = torch.randn(128, 4), torch.randn(4, 128)
    names = [f"base_model.model.{ATTENTION}.lora_{letter}.weight" for letter in "AB"]
    write_adapter({names[0]: down, names[1]: up}, rank=4, alpha=8, folder=patch, base="base")
    write_gguf_adapter(patch, folder, read_gguf(folder / "model.gguf"), tmp_path / "adapter.gguf")
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    tensors = {tensor.name.rpartition(".")[2]: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    # llama.cpp multiplies by alpha / rank.
    scale = reader.fields["adapter.lora.alpha"].contents() / 4
    torch.testing.assert_close(scale * tensors["lora_b"] @ tensors["lora_a"], 2 * up @ down)


def test_what_llama_cpp_holds_in_another_order_is_refused(folder: Path, tmp_path: Path) -> None:
    """The rows of queries are interleaved for its rotary embedding."""
    patch = adapter_of(edits(["model.layers.0.self_attn.q_proj"]), tmp_path / "adapter")
    with pytest.raises(
        ValueError, match="holds the rows or columns of model.layers.0.self_attn.q_proj in another order"
    ):
        write_gguf_adapter(patch, folder, read_gguf(folder / "model.gguf"), tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    model = read_gguf(folder / "model.gguf")
    wide = adapter_of([Edit.rank_one(MLP, torch.ones(128), torch.ones(512))], tmp_path / "wide")
    with pytest.raises(ValueError, match=r"for another model: it adds \[128, 512\] to .*, which is \[128, 256\]"):
        write_gguf_adapter(wide, folder, model, tmp_path / "adapter.gguf")
    other = adapter_of([Edit.rank_one("model.layers.1.mixer.o", torch.ones(128), torch.ones(128))], tmp_path / "other")
    with pytest.raises(ValueError, match="llama.cpp has no name for model.layers.1.mixer.o in its architecture llama"):
        write_gguf_adapter(other, folder, model, tmp_path / "adapter.gguf")


def test_edits_of_experts_are_refused(folder: Path, tmp_path: Path) -> None:
    experts = Edit.rank_one("model.layers.1.mlp.experts.down_proj", torch.ones(128), torch.ones(4, 64))
    patch = adapter_of([*edits([ATTENTION]), experts], tmp_path / "adapter")
    with pytest.raises(ValueError, match="edits routed experts, for which llama.cpp has no LoRA here; merge the patch"):
        write_gguf_adapter(patch, folder, read_gguf(folder / "model.gguf"), tmp_path / "adapter.gguf")


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 0.02), ("Q8_0", 0.1)])
def test_llama_cpp_gives_the_patched_models_log_probabilities(
    kind: str, tolerance: float, llama_cpp_python: Path, original: Path, tmp_path: Path
) -> None:
    """llama.cpp rounds the inputs of 8-bit matrices to 8 bits as well, hence the two tolerances."""
    checkpoint = decoded(original, tmp_path, kind)
    modules = [f"model.layers.{n}.{m}" for n in (1, 2, 3) for m in ("self_attn.o_proj", "mlp.down_proj")]
    patch = adapter_of(edits(modules), tmp_path / "adapter")
    prompts = [[1, 5 + n, 40, 60 + n, 2] for n in range(8)]
    settings, found = ServerSettings(256, threads=1), []
    for applied in (None, patch):
        with LlamaCpp(llama_cpp_python).serve(checkpoint, settings, tmp_path / "log", applied) as client:
            found.append([row.first_token_logprobs or {} for row in client.complete(prompts, 1, logprobs=10)])
        expected = first_token_logprobs(load_model(checkpoint, applied, dtype=torch.float32), prompts)
        # A token that is a part of a character comes without log-probabilities.
        assert sum(bool(answer) for answer in found[-1]) >= 4
        for answer, reference in zip(found[-1], expected, strict=True):
            for token, value in answer.items():
                assert value == pytest.approx(reference[token].item(), abs=tolerance)
    assert found[0] != found[1]

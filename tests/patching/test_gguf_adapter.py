"""A patch as a GGUF LoRA: what the file holds, what is refused, and that llama.cpp computes what Transformers does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import gguf
import pytest
import ready_made
import torch
from tiny_model import build_tiny_model

from aird.evaluation.measurements import first_token_logprobs
from aird.models.gguf_file import read_gguf
from aird.models.loading import dequantise_gguf, load_model
from aird.patching.adapters import save_adapter, write_adapter
from aird.patching.edits import Edit
from aird.patching.gguf_adapter import write_gguf_adapter

ATTENTION, MLP = "model.layers.1.self_attn.o_proj", "model.layers.2.mlp.down_proj"
# Runs where xllamacpp is: log-probabilities of first tokens by llama.cpp's own server.
SERVER = """
import json, sys, urllib.request, xllamacpp
request = json.load(open(sys.argv[1]))
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel = request["model"], 256, 1
parameters.hostnames, parameters.port, parameters.cpuparams.n_threads = ["127.0.0.1"], request["port"], 1
if request["adapter"]:
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(request["adapter"], 1.0)]
server = xllamacpp.Server(parameters)
answers = []
for prompt in request["prompts"]:
    body = {"prompt": prompt, "n_predict": 1, "temperature": 0.0, "n_probs": 10, "cache_prompt": False}
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(server.listening_address + "/completion", json.dumps(body).encode(), headers)
    rows = json.load(urllib.request.urlopen(asked)).get("completion_probabilities") or [{"top_logprobs": []}]
    answers.append({row["id"]: row["logprob"] for row in rows[0]["top_logprobs"]})
json.dump(answers, open(sys.argv[2], "w"))
"""


def decoded(root: Path, kind: str) -> Path:
    """Write a tiny model as `model.gguf`, and return the folder of its decoded float32 weights."""
    ready_made.gguf_file(build_tiny_model(root / "original"), root / "model.gguf", [kind])
    (root / "decoded").mkdir()
    dequantise_gguf(root / "model.gguf", root / "decoded", torch.float32)
    return root / "decoded"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gguf")
    decoded(root, "Q8_0")
    return root


def edits(modules: list[str]) -> list[Edit]:
    generator = torch.Generator().manual_seed(0)
    widths = {"o_proj": 128, "down_proj": 256, "q_proj": 128}
    return [
        Edit(
            module,
            torch.randn(128, generator=generator) / 11,
            torch.randn(widths[module.split(".")[-1]], generator=generator) / 8,
        )
        for module in modules
    ]


def adapter(path: Path, modules: list[str]) -> Path:
    path.mkdir()
    save_adapter(edits(modules), path, "base")
    return path


def test_what_the_file_holds(folder: Path, tmp_path: Path) -> None:
    patch = adapter(tmp_path / "adapter", [ATTENTION, MLP])
    output = tmp_path / "adapter.gguf"
    edited = write_gguf_adapter(patch, folder / "decoded", read_gguf(folder / "model.gguf"), output)
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
    patch = tmp_path / "adapter"
    patch.mkdir()
    up, down = torch.randn(128, 4), torch.randn(4, 128)
    names = [f"base_model.model.{ATTENTION}.lora_{letter}.weight" for letter in "AB"]
    write_adapter({names[0]: down, names[1]: up}, rank=4, alpha=8, folder=patch, base="base")
    write_gguf_adapter(patch, folder / "decoded", read_gguf(folder / "model.gguf"), tmp_path / "adapter.gguf")
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    tensors = {tensor.name.rpartition(".")[2]: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    # llama.cpp multiplies by alpha / rank.
    scale = reader.fields["adapter.lora.alpha"].contents() / 4
    torch.testing.assert_close(scale * tensors["lora_b"] @ tensors["lora_a"], 2 * up @ down)


def test_what_llama_cpp_holds_in_another_order_is_refused(folder: Path, tmp_path: Path) -> None:
    """The rows of queries are interleaved for its rotary embedding."""
    patch = adapter(tmp_path / "adapter", ["model.layers.0.self_attn.q_proj"])
    with pytest.raises(
        ValueError, match="holds the rows or columns of model.layers.0.self_attn.q_proj in another order"
    ):
        write_gguf_adapter(patch, folder / "decoded", read_gguf(folder / "model.gguf"), tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    model = read_gguf(folder / "model.gguf")
    (tmp_path / "wide").mkdir()
    save_adapter([Edit(MLP, torch.ones(128), torch.ones(512))], tmp_path / "wide", "base")
    with pytest.raises(ValueError, match=r"for another model: it adds \[128, 512\] to .*, which is \[128, 256\]"):
        write_gguf_adapter(tmp_path / "wide", folder / "decoded", model, tmp_path / "adapter.gguf")
    (tmp_path / "other").mkdir()
    save_adapter([Edit("model.layers.1.mixer.o", torch.ones(128), torch.ones(128))], tmp_path / "other", "base")
    with pytest.raises(ValueError, match="llama.cpp has no name for model.layers.1.mixer.o in its architecture llama"):
        write_gguf_adapter(tmp_path / "other", folder / "decoded", model, tmp_path / "adapter.gguf")


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 0.02), ("Q8_0", 0.1)])
def test_llama_cpp_gives_the_patched_models_log_probabilities(
    kind: str, tolerance: float, llama_cpp_python: Path, unused_port: int, tmp_path: Path
) -> None:
    """llama.cpp rounds the inputs of 8-bit matrices to 8 bits as well, hence the two tolerances."""
    checkpoint = decoded(tmp_path, kind)
    patch = adapter(
        tmp_path / "adapter",
        [f"model.layers.{n}.{m}" for n in (1, 2, 3) for m in ("self_attn.o_proj", "mlp.down_proj")],
    )
    write_gguf_adapter(patch, checkpoint, read_gguf(tmp_path / "model.gguf"), tmp_path / "adapter.gguf")
    prompts = [[1, 5 + n, 40, 60 + n, 2] for n in range(8)]
    references = {"plain": None, "patched": patch}
    found = {}
    for name, applied in references.items():
        request = {"model": str(tmp_path / "model.gguf"), "prompts": prompts, "port": unused_port}
        request["adapter"] = str(tmp_path / "adapter.gguf") if applied else None
        (tmp_path / "request.json").write_text(json.dumps(request))
        command = [str(llama_cpp_python), "-c", SERVER, str(tmp_path / "request.json"), str(tmp_path / f"{name}.json")]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
        expected = first_token_logprobs(load_model(checkpoint, applied, dtype=torch.float32), prompts)
        # A text that ends at once comes without log-probabilities.
        assert sum(bool(answer) for answer in found[name]) >= 4
        for answer, reference in zip(found[name], expected, strict=True):
            for token, value in answer.items():
                assert value == pytest.approx(reference[int(token)].item(), abs=tolerance)
    assert found["plain"] != found["patched"]


@pytest.fixture
def unused_port() -> int:
    """A port that is free now."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])

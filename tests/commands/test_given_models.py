"""The command on models that Transformers and vLLM do not read as they are: GGUF files, GPTQ and AWQ folders."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import ready_made
import torch
from conftest import ROOT
from grid import write_prompts
from safetensors.torch import load_file
from test_commands import SIZES, prompts
from tiny_model import (
    build_tiny_model,
    changed_tensors,
    configured,
    with_adapter_inside,
    with_mistrals_files,
    with_own_code,
    with_tokenizer_class,
)
from wrappers import write_wrapper

from aird.commands.evaluate import choose_engine
from aird.commands.inputs import COPY_IN_WORDS, SERVER_IN_WORDS, open_model_folder
from aird.commands.main import main
from aird.commands.patch import check_patchable
from aird.compression.compress import compress
from aird.compression.recipes.round_to_nearest import RoundToNearest
from aird.evaluation.engines.llama_cpp import LlamaCpp
from aird.evaluation.engines.transformers import Transformers
from aird.evaluation.engines.url import Url
from aird.models.gguf_file import served_gguf
from aird.models.loading import load_model, load_tokenizer
from aird.models.matrices import dense_matrix
from aird.prompts.chat import chat_tokens
from aird.settings.weights import WeightForm
from aird.support.files import check_folder, hash_folder, read_json, write_json

WRITER = "model.layers.1.mlp.down_proj"
COMMIT = "c0ffee"
FEW = ["--count", "6", "--tokens", "2"]


@pytest.fixture(scope="module")
def folder(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with prompts, a model, and its forms as other tools pack them."""
    root = tmp_path_factory.mktemp("given")
    write_prompts(root)
    (root / "model").symlink_to(original)
    ready_made.gguf_file(root / "model", root / "q8.gguf", ["Q8_0"])
    ready_made.gptq(root / "model", root / "gptq")
    ready_made.awq(root / "model", root / "awq")
    return root


def asked(root: Path, name: str, output: Path, *more: str) -> list[str]:
    return ["evaluate", str(root / name), *prompts(root, "attack.txt"), *FEW, "--output", str(output), *more]


def checked(root: Path, original: str, compressed: str, output: Path, *more: str) -> list[str]:
    models = [str(root / original), str(root / compressed)]
    return ["check", *models, *prompts(root, "attack.txt"), *FEW, "--json", str(output), *more]


def patched(root: Path, compressed: str | Path, output: Path) -> list[str]:
    models = [str(root / "model"), str(compressed)]
    return ["patch", *models, *prompts(root), *SIZES, "--method", "scale", "--output", str(output)]


@pytest.mark.parametrize(
    ("name", "form"),
    [("q8.gguf", "dense copy of its decoded weights"), ("gptq", "repacked"), ("awq", "repacked")],
)
def test_evaluate_says_in_which_form_it_was_measured(name: str, form: str, folder: Path, tmp_path: Path) -> None:
    before = hash_folder(folder / name) if (folder / name).is_dir() else None
    assert main(asked(folder, name, tmp_path, "--transformers")) == 0
    record = read_json(tmp_path / "provenance.json")["model"]
    assert record["name"] == str(folder / name) and form in record["measured_as"]
    assert read_json(tmp_path / "scores.json")["rates"]["refusal"]["n"] == 6
    assert before is None or hash_folder(folder / name) == before


@pytest.mark.thorough
def test_a_command_that_is_ended_leaves_nothing_decoded(folder: Path, tmp_path: Path) -> None:
    long = ["--transformers", "--tokens", "256"]
    command = [sys.executable, "-m", "aird", *asked(folder, "q8.gguf", tmp_path / "scores", *long)]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not list(temporary.glob("aird-decoded-*/*")) and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
        _, told = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM and "ended by a signal" in told
    assert list(temporary.iterdir()) == []


def test_the_decoded_numbers_are_the_packed_ones(folder: Path) -> None:
    model = open_model_folder(str(folder / "gptq"), False)
    assert torch.equal(dense_matrix(model.folder, WRITER), dense_matrix(folder / "gptq", WRITER))
    model = open_model_folder(str(folder / "q8.gguf"), False)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "q8.gguf").tensors}
    stored = tensors["blk.1.ffn_down.weight"]
    expected = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type)).bfloat16()
    assert torch.equal(dense_matrix(model.folder, WRITER), expected)
    # llama.cpp can serve the very file.
    served = served_gguf(model.folder)
    assert served is not None and served.resolve() == (folder / "q8.gguf").resolve()
    # Once a process.
    assert open_model_folder(str(folder / "q8.gguf"), False).folder == model.folder
    assert open_model_folder(str(folder / "model"), False).folder == folder / "model"


def test_experts_that_transformers_does_not_decode(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    original = tiny_folder("qwen3_moe")
    wanted = ready_made.compressed_tensors(original, tmp_path / "nvfp4", "NVFP4A16")
    model = open_model_folder(str(tmp_path / "nvfp4"), False)
    assert model.form == WeightForm.DENSE_COPY
    experts = load_model(model.folder).get_parameter("model.layers.1.mlp.experts.down_proj")
    packed = [wanted[f"model.layers.1.mlp.experts.{number}.down_proj"] for number in range(4)]
    assert torch.equal(experts, torch.stack(packed).to(experts.dtype))
    check_patchable(open_model_folder(str(original), False), model)


def test_a_folder_with_mistrals_own_files_is_read_without_them(folder: Path, tmp_path: Path) -> None:
    """They stay where they are, and an adapter names the folder that was given."""
    given = with_mistrals_files(Path(shutil.copytree(folder / "model", tmp_path / "given")))
    before = hash_folder(given)
    model = open_model_folder(str(given), False)
    assert hash_folder(model.folder) == hash_folder(folder / "model") and hash_folder(given) == before
    assert model.base == str(given) and model.measured_as() is None


def test_a_folder_whose_tokenizer_is_read_otherwise_than_its_file_says(folder: Path, tmp_path: Path) -> None:
    """It is read by its file, and stays as it is."""
    given = with_tokenizer_class(Path(shutil.copytree(folder / "model", tmp_path / "given")), "LlamaTokenizerFast")
    before = hash_folder(given)
    model = open_model_folder(str(given), False)
    prompts = [chat_tokens(load_tokenizer(each), "Name a  colour.\n") for each in (model.folder, folder / "model")]
    assert prompts[0] == prompts[1] and hash_folder(given) == before
    assert model.base == str(given) and model.measured_as() is None
    assert open_model_folder(str(given), False).folder == model.folder


def test_beside_an_original_a_gguf_file_takes_its_type(folder: Path, tmp_path: Path) -> None:
    """Of a model in float16 and its own weights as GGUF, a check finds no difference."""
    half = configured(Path(shutil.copytree(folder / "model", tmp_path / "half")), dtype="float16")
    with changed_tensors(half) as tensors:
        for name, tensor in tensors.items():
            tensors[name] = (tensor.float() * 1.001).half()  # more digits than bfloat16 has
        matrix = tensors[f"{WRITER}.weight"]
    ready_made.gguf_file(half, tmp_path / "half.gguf", ["F16"])
    original = open_model_folder(str(half), False)
    decoded = open_model_folder(str(tmp_path / "half.gguf"), False, original)
    assert torch.equal(dense_matrix(decoded.folder, WRITER), matrix) and decoded.folder != original.folder
    alone = open_model_folder(str(tmp_path / "half.gguf"), False)
    assert torch.equal(dense_matrix(alone.folder, WRITER), matrix.bfloat16())


def test_a_gguf_file_with_an_unproven_tokenizer(folder: Path, tmp_path: Path) -> None:
    """Beside its original it is asked by the original's; alone it is refused, unless nothing is asked of it."""
    path = tmp_path / "model.gguf"
    ready_made.gguf_file(folder / "model", path, ["Q8_0"], pre="chatglm-bpe", chat_template=None)
    with pytest.raises(ValueError, match=r"model.gguf asks for .* chatglm-bpe, .*; name the model that it was made"):
        open_model_folder(str(path), False)
    original = open_model_folder(str(folder / "model"), False)
    beside = open_model_folder(str(path), False, original)
    ours, theirs = (load_tokenizer(each.folder) for each in (beside, original))
    assert chat_tokens(ours, "What is 2 + 2?") == chat_tokens(theirs, "What is 2 + 2?")
    assert open_model_folder(str(path), False, asked=False).folder != beside.folder


def test_a_dense_copy_for_the_engine_is_said(folder: Path) -> None:
    plain, repacked = (open_model_folder(str(folder / name), False) for name in ("model", "gptq"))
    assert plain.record("as stored").keys() == {"name", "commit"}
    assert plain.measured_as("dense copy") == COPY_IN_WORDS
    said = repacked.record(WeightForm.DENSE_COPY)["measured_as"]
    assert said.startswith("the same integers and scales, repacked") and said.endswith(f"; then {COPY_IN_WORDS}")


def test_of_a_running_server_no_form_is_claimed(folder: Path) -> None:
    """It may serve the GGUF file itself, or what was repacked, or something else."""
    for name in ("model", "gptq", "q8.gguf"):
        model = open_model_folder(str(folder / name), False)
        assert model.measured_as(Url.weights) == SERVER_IN_WORDS == model.record(Url.weights)["measured_as"]
    assert "dense copy of its decoded weights" in model.record()["measured_as"]  # what a direction is found in


def test_a_check_of_a_gguf_file_says_what_it_measures(folder: Path, tmp_path: Path) -> None:
    written = ["--transformers", "--report", str(tmp_path / "check.html")]
    assert main(checked(folder, "model", "q8.gguf", tmp_path / "check.json", *written)) == 4
    facts = read_json(tmp_path / "check.json")["facts"]
    assert "nothing about llama.cpp" in facts["compressed measured as"] and "original measured as" not in facts
    assert "nothing about llama.cpp" in (tmp_path / "check.html").read_text(encoding="utf-8")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder of a repository, someone/model, in a cache of the hub's client, which is offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache/models--someone--model"
    (repository / "refs").mkdir(parents=True)
    for name in ("main", COMMIT):  # so short a one is looked up like a branch
        (repository / "refs" / name).write_text(COMMIT, encoding="utf-8")
    (repository / "blobs").mkdir()
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    return repository


def test_a_gguf_file_of_a_repository(folder: Path, tmp_path: Path, cache: Path) -> None:
    shutil.copyfile(folder / "q8.gguf", cache / "blobs/0123")
    (cache / "snapshots" / COMMIT / "Q8.gguf").symlink_to(cache / "blobs/0123")  # as the hub's client stores files
    for name in ("someone/model:Q8.gguf", "someone/model@main:Q8.gguf"):
        command = asked(folder, "none", tmp_path / "scores", "--transformers")
        assert main([command[0], name, *command[2:]]) == 0
        record = read_json(tmp_path / "scores/provenance.json")["model"]
        assert (record["name"], record["commit"]) == ("someone/model:Q8.gguf", COMMIT)
        assert "dense copy of its decoded weights" in record["measured_as"]
    # llama.cpp would serve it, but not a model in safetensors.
    arguments = argparse.Namespace(llama_cpp=sys.executable, transformers=True)
    assert choose_engine(arguments, "someone/model@main:Q8.gguf") == LlamaCpp(Path(sys.executable))
    assert choose_engine(arguments, "someone/model") == Transformers()
    assert main(patched(folder, "someone/model:Q8.gguf", tmp_path / "adapter")) == 0
    card = (tmp_path / "adapter/README.md").read_text(encoding="utf-8")
    loading = f'from_pretrained("someone/model", gguf_file="Q8.gguf", revision="{COMMIT}")'
    assert "base_model: someone/model\n" in card and loading in card
    assert f"hf download someone/model Q8.gguf --revision {COMMIT} --local-dir .\naird export" in card
    assert "llama-server -m Q8.gguf --lora" in card
    configuration = read_json(tmp_path / "adapter/adapter_config.json")
    assert (configuration["base_model_name_or_path"], configuration["revision"]) == ("someone/model:Q8.gguf", COMMIT)
    check_folder(tmp_path / "adapter", read_json(tmp_path / "adapter.statistics.json")["files"])
    # The repository has moved on; the adapter's commit is what is exported for.
    (cache / "refs/main").write_text(COMMIT[::-1], encoding="utf-8")
    assert main(["export", "--gguf", str(tmp_path / "adapter"), str(tmp_path / "adapter.gguf")]) == 0
    exported = [str(tmp_path / "adapter"), str(tmp_path / "newest.gguf"), "--base", "someone/model:Q8.gguf"]
    assert main(["export", "--gguf", *exported]) == 2


def test_an_adapter_of_a_hub_model_names_its_commit(folder: Path, tmp_path: Path, cache: Path) -> None:
    for path in (folder / "gptq").iterdir():
        (cache / "snapshots" / COMMIT / path.name).symlink_to(path)
    assert main(patched(folder, "someone/model", tmp_path / "adapter")) == 0
    assert read_json(tmp_path / "adapter/adapter_config.json")["revision"] == COMMIT
    card = (tmp_path / "adapter/README.md").read_text(encoding="utf-8")
    assert f'from_pretrained("someone/model", revision="{COMMIT}")' in card
    assert f"vllm serve someone/model --revision {COMMIT} --enable-lora" in card
    assert main(patched(folder, folder / "gptq", tmp_path / "local")) == 0
    assert "revision" not in read_json(tmp_path / "local/adapter_config.json")


def test_a_verdict_says_which_commit_of_the_hub_its_original_is(folder: Path, tmp_path: Path, cache: Path) -> None:
    """So `aird push` takes no folder for a hub id."""
    for path in (folder / "model").iterdir():
        (cache / "snapshots" / COMMIT / path.name).symlink_to(path)
    for original, commit in (("someone/model", COMMIT), (str(folder / "model"), None)):
        command = ["check", original, str(folder / "model"), *prompts(folder, "attack.txt"), *FEW]
        assert main([*command, "--transformers", "--json", str(tmp_path / "verdict.json")]) == 4
        facts = read_json(tmp_path / "verdict.json")["facts"]
        assert (facts["original"], facts.get("original commit")) == (original, commit)


def test_a_hub_model_is_refused_before_its_weights_are_fetched(
    folder: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing but config.json is there, and the client is offline."""
    command = asked(folder, "none", tmp_path / "scores", "--transformers")
    for config, said in (
        ({"quantization_config": {"quant_method": "hqq"}}, "is stored as HQQ, which is not read"),
        (
            {"model_type": "llava", "text_config": {}, "quantization_config": {"quant_method": "gptq", "bits": 4}},
            "wraps a quantised text model (llava)",
        ),
    ):
        write_json(cache / "snapshots" / COMMIT / "config.json", config)
        assert main([command[0], "someone/model", *command[2:]]) == 2
        assert f"someone/model {said}" in capsys.readouterr().err


def test_llama_cpp_answers_for_gguf_files(
    folder: Path, tmp_path: Path, llama_cpp_python: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ["--llama-cpp", str(llama_cpp_python)]
    assert main(asked(folder, "q8.gguf", tmp_path / "scores", *server)) == 0
    assert "measured_as" not in read_json(tmp_path / "scores/provenance.json")["model"]
    (first, *_) = (tmp_path / "scores/completions.jsonl").read_text(encoding="utf-8").splitlines()
    assert "xllamacpp" in first
    # Both by llama.cpp, and only one of the two.
    ready_made.gguf_file(folder / "model", tmp_path / "f16.gguf", ["F16"])
    output = tmp_path / "check.json"
    assert main(checked(folder, "q8.gguf", str(tmp_path / "f16.gguf"), output, *server)) == 4
    facts = read_json(output)["facts"]
    assert facts["answered by"] == f"llama.cpp ({llama_cpp_python})"
    assert not any(name.endswith("measured as") for name in facts)
    assert main(checked(folder, "model", "q8.gguf", output, "--transformers", *server)) == 4
    assert "that of the engine and of the compression at once" in read_json(output)["facts"]["answered by"]
    capsys.readouterr()
    assert main(checked(folder, "model", "gptq", output, *server)) == 2
    assert "llama.cpp serves GGUF files alone" in capsys.readouterr().err
    assert main(checked(folder, "model", "q8.gguf", output, "--llama-cpp", "nowhere")) == 2
    assert "there is no file nowhere" in capsys.readouterr().err


def test_a_patch_is_not_merged_into_a_gguf_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ["--llama-cpp", sys.executable, "--serve", "merged"]
    assert main(asked(folder, "q8.gguf", tmp_path / "scores", *server)) == 2
    assert "leave out --serve, or --llama-cpp" in capsys.readouterr().err
    assert main(checked(folder, "model", "q8.gguf", tmp_path / "check.json", *server)) == 2
    assert "leave out --serve, or --llama-cpp" in capsys.readouterr().err


def test_a_quantised_wrapper_is_refused_before_its_weights_are_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wrapper("llava", folder / "model", tmp_path / "wrapper")
    config = read_json(tmp_path / "wrapper/config.json")
    config["text_config"]["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    write_json(tmp_path / "wrapper/config.json", config)
    (tmp_path / "wrapper/model.safetensors").write_bytes(b"")
    assert main(asked(folder, str(tmp_path / "wrapper"), tmp_path / "scores", "--transformers")) == 2
    assert "wraps a quantised text model (llava)" in capsys.readouterr().err


def test_of_a_wrapper_the_text_model_is_asked_and_no_patch_is_made(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrapper = str(tmp_path / "wrapper")
    write_wrapper("llava", folder / "model", tmp_path / "wrapper")
    assert main(asked(folder, wrapper, tmp_path / "scores", "--transformers")) == 0
    record = read_json(tmp_path / "scores/provenance.json")["model"]
    assert "the text model of a wrapper" in record["measured_as"]
    capsys.readouterr()
    assert main(patched(folder, wrapper, tmp_path / "adapter")) == 2
    assert "give the text model itself" in capsys.readouterr().err
    repair = ["--transformers", "--repair", str(tmp_path / "adapter")]
    assert main(checked(folder, "model", wrapper, tmp_path / "check.json", *repair)) == 2
    assert "give the text model itself" in capsys.readouterr().err


def test_what_the_workflow_would_not_patch_is_not_patched(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that says that it is rotated, and one whose matrices are not the original's."""
    compress(folder / "model", tmp_path / "rotated", RoundToNearest(weight_bits=4, group_size=64), None)
    config = read_json(tmp_path / "rotated/config.json")
    config["quantization_config"]["transform_config"] = {"config_groups": {"u": {}}}
    write_json(tmp_path / "rotated/config.json", config)
    build_tiny_model(tmp_path / "other", seed=1)
    capsys.readouterr()
    for name, message in (
        ("rotated", "can be measured but not patched: its matrices are stored rotated"),
        ("other", "can be measured but not patched: 28 matrices, model.layers.0.mlp.down_proj first, are no"),
    ):
        repair = ["check", str(folder / "model"), str(tmp_path / name), *prompts(folder)]
        repair += ["--repair", str(tmp_path / "adapter")]
        for command in (patched(folder, tmp_path / name, tmp_path / "adapter"), repair):
            assert main(command) == 2
            captured = capsys.readouterr()
            assert message in captured.err and captured.out == ""
    assert not (tmp_path / "adapter").exists()


def test_a_gguf_file_is_patched_and_the_patch_exported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(patched(folder, folder / "q8.gguf", tmp_path / "adapter")) == 0
    base = read_json(tmp_path / "adapter/adapter_config.json")["base_model_name_or_path"]
    assert base == str(folder / "q8.gguf")
    card = (tmp_path / "adapter/README.md").read_text(encoding="utf-8")
    assert "aird export --gguf" in card and f'from_pretrained("{folder}", gguf_file="q8.gguf")' in card
    output = tmp_path / "adapter.gguf"
    assert main(["export", "--gguf", str(tmp_path / "adapter"), str(output)]) == 0
    assert f"llama-server -m {base} --lora {output}" in capsys.readouterr().out
    changes = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert 2 * len(gguf.GGUFReader(output).tensors) == 2 * len(changes)
    # Only an earlier export is replaced, and an adapter is no model.
    ready_made.gguf_file(folder / "model", tmp_path / "mine.gguf", ["Q8_0"])
    mine = (tmp_path / "mine.gguf").read_bytes()
    for path in (tmp_path / "mine.gguf", tmp_path / "adapter"):
        assert main(["export", "--gguf", str(tmp_path / "adapter"), str(path)]) == 2
        assert f"OUTPUT: {path} exists already and is no exported patch" in capsys.readouterr().err
    assert (tmp_path / "mine.gguf").read_bytes() == mine
    assert main(["export", "--gguf", str(tmp_path / "adapter"), str(tmp_path / "b.gguf"), "--base", str(output)]) == 2
    assert "adapter.gguf is a GGUF file of type adapter, and no model" in capsys.readouterr().err
    # The same patch for another GGUF file of the model, and for what is none.
    ready_made.gguf_file(folder / "model", tmp_path / "q4.gguf", ["Q4_0"])
    assert main(["export", "--gguf", str(tmp_path / "adapter"), str(output), "--base", str(tmp_path / "q4.gguf")]) == 0
    assert main(["export", "--gguf", str(tmp_path / "adapter"), str(output), "--base", str(folder / "model")]) == 2
    assert "holds no GGUF file, which llama.cpp needs; name the GGUF model with --base" in capsys.readouterr().err


def test_what_cannot_be_read_is_an_error_of_the_input(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("attack.txt", "harmless.txt"):
        shutil.copy(folder / name, tmp_path / name)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF damaged")
    with_adapter_inside(Path(shutil.copytree(folder / "model", tmp_path / "adapted")))
    hqq = Path(shutil.copytree(folder / "model", tmp_path / "hqq"))
    configured(hqq, quantization_config={"quant_method": "hqq"})
    old = Path(shutil.copytree(folder / "gptq", tmp_path / "old"))
    config = read_json(old / "config.json")
    write_json(old / "quantize_config.json", config.pop("quantization_config"))
    write_json(old / "config.json", config)
    lacking = Path(shutil.copytree(folder / "model", tmp_path / "lacking"))
    with changed_tensors(lacking) as tensors:
        del tensors[f"{WRITER}.weight"]
    truncated = Path(shutil.copytree(folder / "awq", tmp_path / "truncated"))
    weights = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(weights[:-1000])
    infinite = Path(shutil.copytree(folder / "awq", tmp_path / "infinite"))
    with changed_tensors(infinite) as tensors:
        tensors[f"{WRITER}.scales"][0, 0] = math.inf
    for name, message in (
        ("broken.gguf", "cannot be read as a GGUF model"),
        ("truncated", "model.safetensors is truncated or altered"),
        ("infinite", "holds NaN or infinite values"),
        ("old", "packed (gptq), but its config.json has no quantization_config; quantize_config.json, which some"),
        ("lacking", f"lacks tensors of its model (1, {WRITER}.weight first)"),
        ("hqq", "is stored as HQQ, which is not read; convert the original"),
        ("adapted", "adapted holds an adapter beside the model"),
        ("none.gguf", "is no folder and no file"),
    ):
        assert main(asked(tmp_path, name, tmp_path / "output", "--transformers")) == 2, name
        assert message in capsys.readouterr().err


def test_of_two_models_the_code_of_the_original_is_trusted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model", "compressed"):
        with_own_code(Path(shutil.copytree(folder / "model", tmp_path / name)))
    for name in ("harmful.txt", "attack.txt", "harmless.txt"):
        shutil.copy(folder / name, tmp_path / name)
    more, ran = ["--transformers", "--trust-remote-code"], tmp_path / "ran"
    check = checked(tmp_path, "model", "compressed", tmp_path / "verdict.json", *more)
    assert main(check) == 4  # random weights refuse nothing
    with (tmp_path / "compressed/own.py").open("a", encoding="utf-8") as stream:
        stream.write(f"open({str(ran)!r}, 'w')\n")
    pair = [str(tmp_path / name) for name in ("model", "compressed")]
    for command in (
        check,
        [*patched(tmp_path, pair[1], tmp_path / "patch"), more[1]],
        ["compare", *pair, *prompts(tmp_path), *SIZES, "--output", str(tmp_path / "compared"), more[1]],
    ):
        assert main(command) == 2
        assert "compressed brings another own.py than" in capsys.readouterr().err
    assert not ran.exists()
    # By itself it is a model whose own code is trusted.
    assert main(asked(tmp_path, "compressed", tmp_path / "scores", *more)) == 0
    assert ran.exists()


def test_a_gguf_file_beside_a_checkpoint_is_read_by_itself(original: Path, tmp_path: Path) -> None:
    """As `recipe: gguf` leaves it; Transformers would take the tokenizer's settings from the folder."""
    folder = Path(shutil.copytree(original, tmp_path / "checkpoint"))
    ready_made.gguf_file(original, folder / "model.gguf", ["Q8_0"])
    opened = open_model_folder(str(folder / "model.gguf"), False)
    assert load_tokenizer(opened.folder).chat_template == load_tokenizer(original).chat_template

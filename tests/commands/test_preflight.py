"""What headers say of two models before either is opened, on real files; and that nothing heavy is loaded for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import ready_made
from conftest import ROOT
from safetensors.torch import load_file, save_file

from aird.commands.main import main
from aird.commands.preflight import Examined, check_room, estimate, examine
from aird.evaluation.engines.vllm import Vllm
from aird.support.files import read_json, write_json


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def with_another_vocabulary(folder: Path) -> None:
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "vocab_size": config["vocab_size"] + 100})


def with_another_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 90_000, "content": "<|beyond|>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def by_bitsandbytes(folder: Path) -> None:
    config = read_json(folder / "config.json")
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "uint8"}
    write_json(folder / "config.json", {**config, "quantization_config": settings})


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no tokenizer": (without_tokenizer, "holds no tokenizer (looked for tokenizer.json,"),
    "no chat template": (without_template, "has no chat template (chat_template.jinja"),
    "another vocabulary": (with_another_vocabulary, "rows, and its config.json says a vocabulary of"),
    "another model's tokenizer": (with_another_tokenizer, "its tokenizer has tokens up to number 90000"),
    "a truncated file": (truncated, "model.safetensors is truncated or altered"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_second_model_is_named_before_the_first_is_opened(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, message = BROKEN[name]
    broken = Path(shutil.copytree(original, tmp_path / "broken"))
    change(broken)
    assert main(["check", str(original), str(broken), "--transformers"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and str(broken) in captured.err
    assert captured.out == ""  # nothing was asked


def test_a_missing_package_is_one_line(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "nf4"))
    by_bitsandbytes(folder)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["check", str(original), str(folder), "--transformers"]) == 2
    assert "the package bitsandbytes is not installed; pip install 'aird[bitsandbytes]'" in capsys.readouterr().err


def test_a_resized_embedding_whose_configuration_says_so_is_taken(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "resized"))
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    rows = tensors[name].shape[0] + 8
    tensors[name] = tensors[name].new_zeros(rows, tensors[name].shape[1])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "vocab_size": rows})
    assert examine(str(folder)).vocabulary == rows


def test_a_dry_run_says_what_it_takes(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = shutil.copytree(original, tmp_path / "other")
    assert main(["check", str(original), str(other), "--transformers", "--dry-run", "--count", "20"]) == 0
    told = capsys.readouterr().out
    assert "Nothing was run. Would ask 2 x 40 prompts by Transformers, about 1 min and 0.0 GB of memory." in told


@pytest.mark.parametrize(("judge", "replies"), [("strongreject", 80), ("classifier", 40)])
def test_a_dry_run_counts_what_the_judge_labels(
    judge: str, replies: int, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(original, tmp_path / "other")
    asked = ["--transformers", "--dry-run", "--count", "20", "--judge", f"{judge}={original}"]
    assert main(["check", str(original), str(other), *asked]) == 0
    told = capsys.readouterr().out
    assert f"GB of memory; the judge {judge} ({original}) would label {replies} replies besides." in told


@pytest.mark.parametrize("command", ["check", "evaluate"])
def test_a_python_without_the_engine_is_told_before_a_model_opens(
    command: str, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty/bin/python"
    gguf = tmp_path / "f16.gguf"
    ready_made.gguf_file(original, gguf, ["F16"])
    (tmp_path / "prompts.txt").write_text("Say hello.\n" * 3, encoding="utf-8")
    prompts = [part for kind in ("harmful", "harmless") for part in (f"--{kind}", str(tmp_path / "prompts.txt"))]
    models = {"check": [str(gguf), str(gguf)], "evaluate": [str(gguf), *prompts, "--output", str(tmp_path / "scores")]}
    assert main([command, *models[command], "--llama-cpp", str(python)]) == 2
    told = capsys.readouterr()
    assert (
        told.err.count("\n") == 1 and f"llama.cpp ({python}): the package xllamacpp is not installed there" in told.err
    )
    assert "pip install xllamacpp" in told.err and not told.out


def test_too_little_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aird.commands.preflight.visible_gpus", list)
    huge = Examined("huge", 10**15, 10**15, 2 * 10**15, None)
    with pytest.raises(ValueError, match=r"decoded copies take 2000000\.0 GB, and the temporary folder"):
        check_room([huge])
    with pytest.raises(ValueError, match=r"the larger of the models takes 2000000\.0 GB of memory"):
        check_room([Examined("huge", 10**15, 10**15, 0, None)])
    assert "min and 2000000.0 GB of memory" in estimate([huge], 10, 10, [Vllm()])


def test_headers_need_no_transformers(original: Path) -> None:
    program = (
        "import sys\nfrom aird.commands.preflight import examine\n"
        f"examine({str(original)!r})\nprint('transformers' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"

"""Mistakes that people make with `aird check`: each ends in one line with exit code 2, in seconds, before a model runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ready_made
import torch
from safetensors.torch import save_file
from test_check import own_prompts

from aird.commands.main import main
from aird.support.files import write_json

SECONDS = 10  # of a busy machine; each takes less than one
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
WRITER = "model.layers.2.mlp.down_proj"
Case = tuple[list[str], str]


@pytest.fixture(scope="module")
def places(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what mistakes are about; `{name}` in a command is a path in it."""
    root = tmp_path_factory.mktemp("mistakes")
    own_prompts(root)
    (root / "empty").mkdir()
    (root / "blank.txt").write_text("\n \n", encoding="utf-8")
    for name in ("binary.txt", "binary.csv", "binary.parquet"):
        (root / name).write_bytes(bytes(range(256)) * 20)
    ready_made.gguf_of_one_tensor(root / "other.gguf", "clip")
    (root / "cut.gguf").write_bytes((root / "other.gguf").read_bytes()[:40])
    changes: dict[str, Callable[[Path], object]] = {
        "model": lambda folder: None,
        "pointer": lambda folder: (folder / "model.safetensors").write_text(POINTER, encoding="utf-8"),
        "pickled": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "configuration": lambda folder: (folder / "config.json").write_text('{"a": ', encoding="utf-8"),
        "tokenizer": lambda folder: (folder / "tokenizer.json").write_text('{"a": ', encoding="utf-8"),
        "base": lambda folder: (folder / "chat_template.jinja").unlink(),
    }
    for name, change in changes.items():
        change(Path(shutil.copytree(original, root / name)))
    adapter(root / "narrow", WRITER, rows=64)
    adapter(root / "named", "transformer.h.2.mlp.c_proj")
    adapter(root / "weightless", WRITER).joinpath("adapter_model.safetensors").unlink()
    adapter(root / "torn", WRITER).joinpath("adapter_config.json").write_text("{", encoding="utf-8")
    return root


def adapter(folder: Path, module: str, rows: int = 128) -> Path:
    folder.mkdir()
    prefix = f"base_model.model.{module}"
    factors = {f"{prefix}.lora_A.weight": torch.ones(1, 256), f"{prefix}.lora_B.weight": torch.ones(rows, 1)}
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 1, "lora_alpha": 1})
    return folder


def of_model(name: str, message: str) -> Case:
    return ["{model}", name, "PROMPTS"], message


def of_option(*more: str, says: str) -> Case:
    return ["{model}", "{model}", "PROMPTS", *more], says


def of_prompts(name: str, message: str) -> Case:
    return ["{model}", "{model}", "--harmful", name, "--harmless", "{harmless.txt}"], message


MISTAKES: dict[str, Case] = {
    "missing folder": of_model("./models/mine", "./models/mine is no folder and no file"),
    "empty folder": of_model("{empty}", "holds no *.safetensors file"),
    "a file of prompts as a model": of_model("{harmful.txt}", "cannot be read as a GGUF model"),
    "a file of a folder": of_model("{model/model.safetensors}", "is one file of a model; name its folder"),
    "an address as a model": of_model("https://huggingface.co/Qwen/Qwen2.5-0.5B", "is an address; write the hub id"),
    "a name with a space": of_model("Qwen 2.5", "Qwen 2.5 is no folder and no file"),
    "a hub id that does not exist": of_model("Qwen/Qwen2.5-Instrct", "there is no folder Qwen/Qwen2.5-Instrct here"),
    "a pointer of Git LFS": of_model("{pointer}", "model.safetensors is truncated or altered"),
    "pickled weights": of_model("{pickled}", "convert the model with save_pretrained first"),
    "a torn config.json": of_model("{configuration}", "config.json is no JSON"),
    "a torn tokenizer.json": of_model("{tokenizer}", "tokenizer.json cannot be read"),
    "a base model": of_model("{base}", "has no chat template"),
    "a cut GGUF file": of_model("{cut.gguf}", "cannot be read as a GGUF model"),
    "a GGUF file of vision": of_model("{other.gguf}", "of the architecture clip"),
    "one model": (["{model}"], "name two models"),
    "no such prompts": of_prompts("{none.txt}", "--harmful: there is no file"),
    "a folder as prompts": of_prompts("{empty}", "--harmful: there is no file"),
    "prompts without a line": of_prompts("{blank.txt}", "holds no text"),
    "binary text": of_prompts("{binary.txt}", "binary.txt cannot be read as lines"),
    "a binary table": of_prompts("{binary.csv}", "binary.csv cannot be read as csv"),
    "a table that is none": of_prompts("{binary.parquet}", "binary.parquet cannot be read as parquet"),
    "half of the prompts": (["{model}", "{model}", "--harmful", "{harmful.txt}"], "--harmful alone is half a check"),
    "an unknown preset": (["{model}", "{model}", "--prompts", "advbanch"], "invalid choice: 'advbanch'"),
    "an unknown engine": of_option("--sglang", says="unrecognized arguments: --sglang"),
    "an engine that is not there": of_option("--vllm", "/nowhere/python", says="--vllm: there is no file"),
    "an address without http": of_option("--url", "localhost:8000", says="(found: localhost:8000)"),
    "a mistyped option": of_option("--cuont", "5", says="unrecognized arguments: --cuont"),
    "a negative count": of_option("--count", "-5", says="--count: no loss among -5 prompts"),
    "a count in words": of_option("--count", "many", says="--count: invalid int value: 'many'"),
    "more than there are": of_option("--count", "500", says="ask for fewer with --count"),
    "no tokens": of_option("--tokens", "0", says="--tokens: 0 is no whole number above 0"),
    "no length": of_option("--length", "-1", says="--length: -1 is no whole number above 0"),
    "a margin of everything": of_option("--margin", "200", says="--margin: 200 is no margin"),
    "a margin in percent": of_option("--margin", "5%", says="--margin: invalid float value: '5%'"),
    "a file as output": of_option("--output", "{harmful.txt}", says="is a file; name a folder"),
    "a model as output": of_option("--output", "{model}", says="holds a model; name a folder of its own"),
    "a folder as report": of_option("--report", "{empty}", says="--report: {empty} is a folder; name a file"),
    "a template argument without value": of_option("--template-argument", "think", says="think is not NAME=VALUE"),
    "no suite": (["{model}", "{model}", "--suite", "config.yml:safety"], "--suite: config.yml:safety names no file"),
    "no adapter": of_option("--patch", "{empty}", says="holds no adapter_config.json"),
    "an adapter without weights": of_option("--patch", "{weightless}", says="holds no adapter_model.safetensors"),
    "a torn adapter": of_option("--patch", "{torn}", says="adapter_config.json is no JSON"),
    "an adapter of a smaller model": of_option("--patch", "{narrow}", says="is of a matrix 64 x 256, and that of"),
    "an adapter of another family": of_option("--patch", "{named}", says="was made for another model: it changes"),
    "a repair that is there": of_option("--repair", "{empty}", says="exists already; name a new folder"),
}


def answer(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, float]:
    """Return the exit code of `aird check`, what it wrote to stderr, and the seconds that it took."""
    started = time.monotonic()
    try:
        code = main(["check", *command])
    except SystemExit as ended:  # argparse
        code = int(ended.code or 0)
    captured = capsys.readouterr()
    assert "Asking" not in captured.out
    return code, captured.err, time.monotonic() - started


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(
    places: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    given, message = MISTAKES[name]
    prompts = ["--harmful", "{harmful.txt}", "--harmless", "{harmless.txt}"]
    command = [part for each in given for part in (prompts if each == "PROMPTS" else [each])]

    def filled(text: str) -> str:
        return str(places / text[1:-1]) if text.startswith("{") else text.replace("{empty}", str(places / "empty"))

    engine = [] if any(each in given for each in ("--vllm", "--url")) else ["--transformers"]
    code, told, seconds = answer([*map(filled, command), *engine], capsys)
    assert code == 2 and seconds < SECONDS
    (line,) = told.splitlines()
    assert line.startswith("aird") and filled(message) in line


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    """Let this process read files as a user who is not root, whom permissions do not bind."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("closed", ["model", "model/model.safetensors", "model/config.json", "harmful.txt", ""])
def test_what_may_not_be_read_is_one_line(places: Path, capsys: pytest.CaptureFixture[str], closed: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        root = Path(folder)
        for name in ("harmful.txt", "harmless.txt"):
            shutil.copy(places / name, root / name)
        shutil.copytree(places / "model", root / "model")
        for path in (root, *root.rglob("*")):
            path.chmod(0o755)
        (root / closed).chmod(0)
        model, prompts = str(root / "model"), [f"--{kind}={root / kind}.txt" for kind in ("harmful", "harmless")]
        with somebody_else():
            code, told, _ = answer([model, model, *prompts, "--transformers"], capsys)
        (root / closed).chmod(0o755)
        assert code == 2
        (line,) = told.splitlines()
        assert "Permission denied" in line and str(root / closed) in line

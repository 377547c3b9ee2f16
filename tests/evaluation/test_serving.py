"""vLLM as an engine, and what all servers share: with real vLLM servers, real kills and, where vLLM adds nothing, stand-ins."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import torch
from conftest import SERVER_SETTINGS
from patches import adapter_of, random_edits
from servers import (
    LONG_PROMPTS,
    answering,
    asking,
    chat_prompts,
    evaluate,
    is_listening,
    server_at,
    session_members,
    small_vllm,
    wait_for,
)
from tiny_model import changed_tensors, new, with_tokenizer_class
from transformers import AutoModelForCausalLM, AutoTokenizer

from aird.evaluation import engine as engine_module
from aird.evaluation import server_process
from aird.evaluation.engine import AdapterRefused, ServerSettings
from aird.evaluation.engines import vllm
from aird.evaluation.engines.vllm import Vllm
from aird.evaluation.http_server import HttpServer
from aird.evaluation.vllm_client import VllmClient
from aird.models.importing import import_model
from aird.models.loading import load_model
from aird.patching.adapters import write_adapter


@pytest.fixture(scope="module")
def prompts(original: Path) -> list[list[int]]:
    return chat_prompts(original)


@pytest.fixture(scope="module")
def reference(original: Path) -> Callable[[list[int]], torch.Tensor]:
    """Log-probabilities of every next token of one prompt, [length, vocabulary], by Transformers."""
    model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32).eval()

    @torch.no_grad()
    def logprobs(prompt: list[int]) -> torch.Tensor:
        return model(torch.tensor([prompt])).logits[0].log_softmax(-1)

    return logprobs


def make_adapter(folder: Path) -> Path:
    """Write an adapter of rank 1 on all that the blocks of the tiny model write with."""
    modules = [f"model.layers.{layer}.{name}" for layer in range(4) for name in ("self_attn.o_proj", "mlp.down_proj")]
    return adapter_of(random_edits(modules, 0.6), folder)


def stand_in(folder: Path, script: str) -> Path:
    """Write an executable that takes the place of vLLM's interpreter."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_port_taken_is_replaced(served: tuple[VllmClient, list[int]]) -> None:
    """A server whose port is in use is started on another one."""
    connection, ports = served
    assert len(ports) == 2
    assert connection.server.address == f"http://127.0.0.1:{ports[1]}"


def test_only_the_loopback_address_is_listened_on(served: tuple[VllmClient, list[int]]) -> None:
    """Neither the API nor what vLLM's processes use among themselves can be reached from another machine."""
    listening = [
        connection.laddr
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert served[1][1] in {address.port for address in listening}
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_version(served: tuple[VllmClient, list[int]]) -> None:
    """The version is vLLM's."""
    assert re.match(r"\d+\.\d+", served[0].versions()["vllm"])


def test_complete_keeps_the_order(
    served: tuple[VllmClient, list[int]],
    prompts: list[list[int]],
    original: Path,
    reference: Callable[[list[int]], torch.Tensor],
) -> None:
    """Each completion is what Transformers decodes greedily from the prompt at the same place."""
    tokenizer = AutoTokenizer.from_pretrained(original)
    completions = served[0].complete(prompts, 6)
    assert len(completions) == len(prompts)
    assert len({completion.text for completion in completions}) > len(prompts) // 4
    for prompt, completion in zip(prompts, completions, strict=True):
        tokens = list(prompt)
        for _ in range(6):
            tokens.append(int(reference(tokens)[-1].argmax()))
            if tokens[-1] == tokenizer.eos_token_id:
                break
        expected = tokens[len(prompt) :]
        assert list(completion.token_ids) == expected
        assert completion.token_count == len(expected)
        # A server leaves out the bytes of a character that was cut off, where Transformers prints U+FFFD.
        text = tokenizer.decode(expected, skip_special_tokens=True)
        assert completion.text.rstrip("\ufffd") == text.rstrip("\ufffd")
        ended = expected[-1] == tokenizer.eos_token_id
        assert completion.finish_reason == ("stop" if ended else "length")
        assert completion.first_token_logprobs is None


def test_a_server_reads_an_imported_tokenizer_as_its_file_says(
    original: Path, prompts: list[list[int]], tmp_path: Path, vllm_python: Path
) -> None:
    """Texts that it gets, as from lm-eval's tasks, and texts that it writes."""
    source = with_tokenizer_class(Path(shutil.copytree(original, tmp_path / "source")), "LlamaTokenizerFast")
    folder = new(tmp_path / "imported")
    import_model(source, folder, "bfloat16")
    tokenizer = AutoTokenizer.from_pretrained(original)
    text = "Two  spaces,\n\nand lines."
    with small_vllm(vllm_python).serve(folder, SERVER_SETTINGS, tmp_path / "vllm.log") as client:
        completions = client.complete(prompts[:4], 8)
        body = {"model": client.model, "prompt": text, "max_tokens": 1, "return_token_ids": True}
        (answer,) = client.server.post_all("/v1/completions", [body])
    assert answer["choices"][0]["prompt_token_ids"] == tokenizer(text).input_ids
    for completion in completions:
        written = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        assert completion.text.rstrip("\ufffd") == written.rstrip("\ufffd")


def test_first_token_logprobs_agree_with_transformers(
    served: tuple[VllmClient, list[int]],
    prompts: list[list[int]],
    reference: Callable[[list[int]], torch.Tensor],
) -> None:
    """The first token's log-probabilities have token ids as keys and Transformers' values."""
    completions = served[0].complete(prompts[:8], 2, logprobs=10)
    for prompt, completion in zip(prompts[:8], completions, strict=True):
        expected = reference(prompt)[-1]
        first = completion.first_token_logprobs
        assert first is not None
        assert set(first) == set(expected.topk(10).indices.tolist())
        for token, value in first.items():
            assert value == pytest.approx(expected[token].item(), abs=0.05)


def test_prompt_logprobs_agree_with_transformers(
    served: tuple[VllmClient, list[int]],
    prompts: list[list[int]],
    reference: Callable[[list[int]], torch.Tensor],
) -> None:
    """Each prompt token has Transformers' log-probability, and the first has none."""
    values = served[0].token_logprobs(prompts)
    assert [len(row) for row in values] == [len(prompt) for prompt in prompts]
    for prompt, row in zip(prompts, values, strict=True):
        expected = reference(prompt)[:-1].gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0]
        assert row[0] is None
        assert row[1:] == pytest.approx(expected.tolist(), abs=0.05)


def test_nothing_to_complete(served: tuple[VllmClient, list[int]]) -> None:
    """No prompts give no completions."""
    assert served[0].complete([], 4) == []
    assert served[0].token_logprobs([]) == []


@pytest.mark.parametrize(
    ("prompt", "model", "message"),
    [
        ([9999], vllm.CHECKPOINT, "vocabulary"),
        ([1] * 2000, vllm.CHECKPOINT, "maximum context length"),
        ([1], vllm.ADAPTER, "does not exist"),
    ],
)
def test_refused_request_gives_the_servers_message(
    served: tuple[VllmClient, list[int]], prompt: list[int], model: str, message: str
) -> None:
    """What the server says about a bad request is in the error."""
    with pytest.raises(RuntimeError, match=f"HTTP 40[0-9].*{message}"):
        VllmClient(served[0].server, model).complete([[1, 2], prompt], 4)


def test_an_answer_that_does_not_fit_is_an_error(
    served: tuple[VllmClient, list[int]], prompts: list[list[int]]
) -> None:
    """vLLM takes the tokens that are left, and says nothing."""
    long = (prompts[0] * 64)[:1020]
    assert served[0].complete([long], 4)[0].finish_reason == "length"
    with pytest.raises(RuntimeError, match=r"vLLM cut an answer after 4 of 64 .* behind a prompt of 1020 .* be 1084"):
        served[0].complete([prompts[0], long], 64)


def test_user_server(
    served: tuple[VllmClient, list[int]], original: Path, tmp_path: Path, prompts: list[list[int]]
) -> None:
    """A server at a URL is used and left running; an adapter cannot be put on what it serves."""
    address = served[0].server.address
    log_path = tmp_path / "log"
    with server_at(address + "/").serve(original, SERVER_SETTINGS, log_path) as other:
        assert (other.server.address, other.model) == (address, served[0].model)
        assert other.complete(prompts[:3], 3) == served[0].complete(prompts[:3], 3)
    assert not log_path.exists()
    with (
        pytest.raises(ValueError, match="merged"),
        server_at(address).serve(original, SERVER_SETTINGS, log_path, adapter=tmp_path),
    ):
        pass
    assert served[0].versions()


def test_no_user_server(tmp_path: Path) -> None:
    """A URL where nothing listens is named in the error."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(RuntimeError, match=address), server_at(address).serve(tmp_path, SERVER_SETTINGS, tmp_path):
            pass


def test_adapter_and_server_killed_midway(
    vllm_python: Path, original: Path, tmp_path: Path, prompts: list[list[int]]
) -> None:
    """A LoRA adapter is on what is asked; when the engine is then killed, requests fail and all ends."""
    settings = ServerSettings(1024, threads=1)
    adapter = make_adapter(tmp_path / "adapter")
    before = set(psutil.Process().children())
    with small_vllm(vllm_python).serve(original, settings, tmp_path / "log", adapter) as client:
        adapted = client.complete(prompts, 6)
        plain = VllmClient(client.server, vllm.CHECKPOINT).complete(prompts, 6)
        assert plain != adapted
        assert client.complete(prompts, 6) == adapted
        # Of the adapter, and of prompts in batches: on a CPU, a LoRA on the head would kill the engine here.
        likelihoods = client.token_logprobs(prompts)
        adapted_model = load_model(original, adapter)
        for prompt, row in zip(prompts[:5], likelihoods[:5], strict=True):
            with torch.no_grad():
                logprobs = adapted_model(torch.tensor([prompt])).logits[0, :-1].float().log_softmax(-1)
            expected = logprobs.gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0]
            assert row[1:] == pytest.approx(expected.tolist(), abs=0.15)
        (launcher,) = set(psutil.Process().children()) - before
        session = launcher.pid
        port = int(client.server.address.rpartition(":")[2])
        (engine,) = (process for process in session_members(session) if "EngineCore" in process.name())
        timer = threading.Timer(1.0, engine.kill)
        timer.start()
        with pytest.raises(RuntimeError, match="end of its log"):
            client.complete(LONG_PROMPTS, 900)
        wait_for(lambda: not session_members(session), "the rest of the server to end")
        with pytest.raises(RuntimeError, match="ended with exit code"):
            client.complete(prompts, 6)
    assert not is_listening(port)


def own_processes() -> set[psutil.Process]:
    """Return the processes that this one started, without the tiny run of other tests and its jobs."""
    processes: set[psutil.Process] = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if "snakemake" not in " ".join(child.cmdline()):
                processes |= {child, *child.children(recursive=True)}
    return processes


def test_broken_checkpoint(vllm_python: Path, original: Path, tmp_path: Path) -> None:
    """The engine's own error is in the message, though it is far from the end of the log."""
    before = own_processes()
    broken = Path(shutil.copytree(original, tmp_path / "broken"))
    with changed_tensors(broken) as tensors:
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)
    with (
        pytest.raises(RuntimeError, match="while starting") as caught,
        small_vllm(vllm_python).serve(broken, SERVER_SETTINGS, tmp_path / "log"),
    ):
        pass
    first_line = str(caught.value).splitlines()[0]
    assert "EngineCore" in first_line
    assert "dimension size (3)" in first_line
    assert "Engine core initialization failed" in str(caught.value)
    assert own_processes() == before


def test_server_that_ends_while_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code and the last log lines are in the error; the server never had the tokens."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    python = stand_in(tmp_path, 'for i in $(seq 100); do echo "line $i"; done\nenv\nexit 3')
    with (
        pytest.raises(RuntimeError, match="exit code 3") as caught,
        Vllm(python).serve(tmp_path, SERVER_SETTINGS, tmp_path / "log"),
    ):
        pass
    log = (tmp_path / "log").read_text()
    assert "line 1\n" in log
    assert "line 1\n" not in str(caught.value)
    assert "HF_HUB_OFFLINE=1" in log
    assert "hf_secret" not in log


def test_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not ready in time is killed, even if it and its children ignore SIGTERM."""
    monkeypatch.setattr(server_process, "STOP_GRACE_SECONDS", 0.5)
    python = stand_in(tmp_path, "trap '' TERM\nsleep 1000 &\necho pids $$ $!\nwait\nsleep 1000")
    settings = ServerSettings(64, start_timeout_seconds=1.0, dtype="float32")
    with (
        pytest.raises(RuntimeError, match="not ready after 1 s"),
        Vllm(python).serve(tmp_path, settings, tmp_path / "log"),
    ):
        pass
    pids = [int(number) for number in re.findall(r"\d+", (tmp_path / "log").read_text())]
    assert len(pids) == 2
    alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    assert alive == []


def test_a_server_may_take_longer_to_read_a_larger_checkpoint(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own limit, by which it waits for the process that reads the weights, is the same."""
    weights = original / "model.safetensors"
    monkeypatch.setattr(engine_module, "SLOWEST_READING", weights.stat().st_size / 90.5)
    python = stand_in(tmp_path, "printenv VLLM_ENGINE_READY_TIMEOUT_S; exit 1")
    with (
        pytest.raises(RuntimeError, match="ended with exit code 1"),
        Vllm(python).serve(original, ServerSettings(64, dtype="float32"), tmp_path / "log"),
    ):
        pass
    assert (tmp_path / "log").read_text().strip() == "691"
    assert ServerSettings(64).start_seconds([weights]) == pytest.approx(690.5)
    assert ServerSettings(64, start_timeout_seconds=3.0).start_seconds([weights]) == 3.0


@pytest.mark.thorough
def test_a_task_that_does_not_exist_is_named_before_the_start(original: Path, tmp_path: Path) -> None:
    suite = asking(tasks=["no_such_task"])
    with pytest.raises(ValueError, match="lm-eval knows no task no_such_task"):
        evaluate(Vllm(tmp_path / "absent"), original, tmp_path, suite=suite)


def test_no_interpreter(tmp_path: Path) -> None:
    """An interpreter that does not exist is named."""
    with (
        pytest.raises(ValueError, match="absent"),
        Vllm(tmp_path / "absent").serve(tmp_path, SERVER_SETTINGS, tmp_path / "log"),
    ):
        pass


def test_signal_handlers_are_restored(tmp_path: Path) -> None:
    """Inside the context SIGTERM is SystemExit; afterwards the handlers are as before."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    python = stand_in(tmp_path, "exec sleep 1000")
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(SystemExit) as caught, Vllm(python).serve(tmp_path, SERVER_SETTINGS, tmp_path / "log"):
        pass
    assert caught.value.code == 128 + signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_while_a_connection_is_opened_ends_the_job_as_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """anyio wraps what a handler raises there in a group of exceptions, which would be another exit code."""

    async def interrupted(*_: object, **__: object) -> None:
        async with anyio.create_task_group():
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(anyio, "connect_tcp", interrupted)
    server = HttpServer("test", "http://127.0.0.1:1")
    with server_process.signals_as_exit(), pytest.raises(SystemExit) as caught:
        server.post_all("/", [{}, {}])
    assert caught.value.code == 128 + signal.SIGTERM


def test_signal_in_a_destructor() -> None:
    """Python drops what a handler raises in a destructor; the exit that was asked for comes all the same."""

    class Signalling:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    reached = False
    with server_process.signals_as_exit(), pytest.raises(SystemExit) as caught:
        signalling = Signalling()
        del signalling
        reached = True
        time.sleep(60)
    assert reached
    assert caught.value.code == 128 + signal.SIGTERM


def test_nan_is_a_value_error(tmp_path: Path) -> None:
    """What vLLM 0.32.0 answers for a checkpoint with NaN weights is recognised."""

    def answer(path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        if body is None:
            return 200, {"data": [{"id": "model", "parent": None}]}
        message = "Out of range float values are not JSON compliant: nan"
        return 500, {"error": {"message": message, "type": "InternalServerError", "code": 500}}

    with answering(answer) as url, server_at(url).serve(tmp_path, SERVER_SETTINGS, tmp_path / "log") as client:
        with pytest.raises(ValueError, match="NaN"):
            client.complete([[1]], 1, logprobs=2)
        with pytest.raises(ValueError, match="NaN"):
            client.token_logprobs([[1, 2]])


@pytest.mark.parametrize(
    ("listing", "visible", "expected"),
    [
        ("GPU 0: NVIDIA H100 (UUID: GPU-1)", None, "cuda"),
        ("GPU 0: NVIDIA H100 (UUID: GPU-1)", "", "cpu"),
        ("No devices were found", None, "cpu"),
        (None, None, "cpu"),
    ],
)
def test_detect_accelerator(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    listing: str | None,
    visible: str | None,
    expected: str,
) -> None:
    """A GPU counts if nvidia-smi lists it and CUDA_VISIBLE_DEVICES does not hide it."""
    if listing is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho '{listing}'\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert vllm.detect_accelerator() == expected


@pytest.mark.parametrize(("rank", "expected"), [(1, 1), (2, 8), (16, 16), (200, 256)])
def test_lora_rank_is_rounded_up(tmp_path: Path, rank: int, expected: int) -> None:
    """vLLM accepts only some ranks; a rank pattern counts too."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 1, "rank_pattern": {"layer": rank}}))
    assert vllm._lora_rank(tmp_path) == expected


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (["model.layers.0.mlp.down_proj", "model.layers.3.mlp.down_proj"], ["down_proj"]),
        (["model.layers.0.self_attn.o_proj", "lm_head"], ["lm_head", "o_proj"]),
        (
            ["model.layers.0.mlp.experts.3.down_proj", "model.layers.0.mlp.shared_experts.up_proj"],
            ["experts", "up_proj"],
        ),
    ],
)
def test_only_modules_that_an_adapter_changes_get_a_lora(
    tmp_path: Path, modules: list[str], expected: list[str]
) -> None:
    write_adapter(
        {f"base_model.model.{m}.lora_{s}.weight": torch.ones(1) for m in modules for s in "AB"}, 1, 1, tmp_path, ""
    )
    assert vllm._lora_targets(tmp_path) == expected


def test_an_adapter_that_vllm_has_no_lora_for(tmp_path: Path) -> None:
    """By its error, by its rank, and on a CPU by a LoRA on the head; another error is none about the adapter."""
    adapter = make_adapter(tmp_path / "adapter-LoRA")
    error = "(EngineCore pid=7) ERROR 11-26 12:00:00 [core.py:1] ValueError: TinyForCausalLM does not support LoRA yet."

    def started(python: Path, folder: Path | None) -> None:
        with Vllm(python).serve(tmp_path, SERVER_SETTINGS, tmp_path / "log", folder):
            pass

    python = stand_in(tmp_path, f"echo '{error}'\nexit 1")
    with pytest.raises(AdapterRefused, match="TinyForCausalLM does not support LoRA yet"):
        started(python, adapter)
    with pytest.raises(RuntimeError, match="does not support LoRA yet") as caught:
        started(python, None)
    assert not isinstance(caught.value, AdapterRefused)
    python = stand_in(tmp_path, f"echo 'ValueError: no room'\necho '{error}'\nexit 1")
    with pytest.raises(RuntimeError, match="no room") as caught:
        started(python, adapter)
    assert not isinstance(caught.value, AdapterRefused)
    configuration = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**configuration, "r": 1000}))
    with pytest.raises(AdapterRefused, match="up to rank 512, not 1000"):
        started(python, adapter)
    if vllm.detect_accelerator() == "cpu":
        head = new(tmp_path / "head")
        write_adapter({f"base_model.model.lm_head.lora_{s}.weight": torch.ones(1, 1) for s in "AB"}, 1, 1, head, "")
        with pytest.raises(AdapterRefused, match="no adapter on lm_head"):
            started(python, head)


def test_compiled_kernels_are_kept_where_nobody_else_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are run, so a folder that another user made is not taken."""
    name, settings = "TORCHINDUCTOR_CACHE_DIR", ServerSettings(maximum_model_length=64)
    monkeypatch.delenv(name, raising=False)

    def kept() -> str | None:
        return vllm._environment("python", settings, on_cpu=False, seconds=600).get(name)

    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ("", "results"):  # the working folder may be a stranger's
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert kept() == str(tmp_path / ".cache/aird-inductor")
    caches = tmp_path / "caches"
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches))
    assert kept() == str(caches / "aird-inductor")
    assert (caches / "aird-inductor").stat().st_mode & 0o777 == 0o700
    (caches / "aird-inductor").chmod(0o777)
    assert kept() is None  # then in the server's own temporary folder
    (caches / "aird-inductor").rmdir()
    (caches / "aird-inductor").symlink_to(tmp_path)
    assert kept() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    assert kept() is None
    monkeypatch.setenv(name, "my/own")
    assert kept() == "my/own"

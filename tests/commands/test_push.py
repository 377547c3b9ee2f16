"""`aird push` against a stand-in of the hub's HTTP interface: what is uploaded, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from aird.commands.main import main
from aird.commands.patch import statistics_of
from aird.commands.push import LOCAL_PATH, published_card
from aird.patching.model_card import patch_card
from aird.reporting.evaluated_card import numbers_section, published_numbers
from aird.support.files import write_json

WEIGHTS = b"the bytes of an adapter"
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as one commit needs; `server.state` is the repository."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        state, address = self.server.state, f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
        if self.headers.get("Authorization") != "Bearer hf_test":
            return self._answer(401, {"error": "Unauthorized"})
        if self.path == "/api/repos/create":
            state["created"] = json.loads(body)
            return self._answer(200, {"url": f"{address}/someone/repaired", "name": "someone/repaired"})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.path.startswith("/api/models/someone/repaired/preupload/"):
            # As the hub does: tensors are large files, text is not.
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": modes})
        if self.path == "/someone/repaired.git/info/lfs/objects/batch":
            objects = [
                {**one, "actions": {"upload": {"href": f"{address}/storage/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if self.path.startswith("/api/models/someone/repaired/commit/"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    state["files"][value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    state["files"][value["path"]] = state["storage"][value["oid"]]
            return self._answer(
                200, {"commitUrl": f"{address}/someone/repaired/commit/abc", "commitOid": "abc", "success": True}
            )
        return self._answer(404, {"error": self.path})

    def do_PUT(self) -> None:
        state = self.server.state  # type: ignore[attr-defined]
        state["storage"][self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, {})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.state = {"files": {}, "storage": {}}  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


RECORD: dict[str, Any] = {
    "settings": {"method": "scale", "direction": "original", "alpha": 1.0},
    "direction": {"layer": 1, "position": -1, "sha256": "0"},
    "blocks": [0],
    "edits": [{"module": "fp8_projection"}],
    "base": "/models/four-bits",
    "licence": None,
}
RATE = {"n": 20, "rate": 0.95, "low": 0.75, "high": 1.0}
SCORE = {
    "rates": dict.fromkeys(("refusal", "asr_wei", "degenerate", "over_refusal"), RATE),
    "served_as": "adapter",
    "perplexity": None,
    "questions": {},
    "labels": [
        {"id": str(n), "kind": kind, "refused": kind == "harmful"}
        for kind in ("harmful", "harmless")
        for n in range(20)
    ],
}
SUITES = {"safety": dict.fromkeys(("original", "compressed", "patched"), SCORE)}


def write_adapter(folder: Path, **record: Any) -> Path:
    """Write an adapter as `aird patch` does, with what stands beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    record = {**RECORD, "weights": {"adapter_model.safetensors": SHA256}, **record}
    configuration = {"r": 1, "base_model_name_or_path": record["base"]}
    if "revision" in record:
        configuration["revision"] = record["revision"]
    write_json(folder / "adapter_config.json", configuration)
    write_json(statistics_of(folder), record)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


@pytest.fixture
def verdict(tmp_path: Path, adapter: Path) -> Path:
    path = tmp_path / "verdict.json"
    facts = {
        "compressed": f"/models/four-bits with {adapter}",
        "patch": SHA256,
        "patched model": "/models/four-bits",
        "seed": "42",
        "command": "aird check a b",
    }
    write_json(path, {"outcome": "within margin", "text": "Within the margin: 3 of 200.", "facts": facts})
    return path


Refused = Callable[..., str]


@pytest.fixture
def refused(adapter: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Return a function that pushes with some options, which has to be refused, and returns why."""

    def why(*options: object) -> str:
        assert main(["push", str(adapter), "someone/repaired", *map(str, options)]) == 2
        return capsys.readouterr().err

    return why


def push(hub: ThreadingHTTPServer, *arguments: object, token: str = "hf_test") -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, since huggingface_hub reads its address once, when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-m", "aird", "push", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)


def test_an_adapter_goes_out_with_its_verdict_and_the_hub_name_of_its_base(
    hub: ThreadingHTTPServer, adapter: Path, verdict: Path
) -> None:
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    result = push(hub, adapter, "someone/repaired", "--verdict", verdict, "--base", "someone/four-bits", "--private")
    assert result.returncode == 0, result.stderr
    assert "/someone/repaired/commit/abc" in result.stdout
    state = hub.state  # type: ignore[attr-defined]
    assert state["created"]["name"] == "repaired" and state["created"]["organization"] == "someone"
    assert state["created"]["visibility"] == "private"
    assert set(state["files"]) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert state["files"]["adapter_model.safetensors"] == WEIGHTS
    assert json.loads(state["files"]["adapter_config.json"])["base_model_name_or_path"] == "someone/four-bits"
    card = state["files"]["README.md"].decode()
    assert "base_model: someone/four-bits\n" in card and "/models/" not in card
    assert card.index("**Within margin.** Within the margin: 3 of 200.") < card.index("## Limits")
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before


def test_a_token_that_may_not_write_is_named(hub: ThreadingHTTPServer, adapter: Path, verdict: Path) -> None:
    options = ["--verdict", verdict, "--base", "someone/four-bits"]
    result = push(hub, adapter, "someone/repaired", *options, token="hf_other")
    assert result.returncode == 2
    assert "someone/repaired could not be written" in result.stderr and "token" in result.stderr
    assert hub.state["files"] == {}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--base", "a/b"], "nothing was measured about this adapter"),
        (["--verdict", "{verdict}"], "made for /models/four-bits, which is the name of a folder"),
        (["--base", "a/b", "--verdict", "none.json"], "--verdict: there is no file none.json"),
        (["--base", "a/b", "--verdict", "{numbers}"], "is not what `aird check --json` wrote"),
        (["--base", "a/b", "--numbers", "{numbers}"], "{numbers} is about another adapter"),
        (["--base", "not a hub id"], "--base: not a hub id is no hub id"),
    ],
)
def test_what_is_not_published(verdict: Path, refused: Refused, options: list[str], message: str) -> None:
    numbers = verdict.with_name("numbers.json")
    write_json(numbers, {"weights": {"adapter_model.safetensors": "0" * 64}, "suites": SUITES})
    options = [option.format(verdict=verdict, numbers=numbers) for option in options]
    assert message.format(numbers=numbers) in refused(*options)


def test_an_adapter_that_was_changed_is_refused(adapter: Path, verdict: Path, refused: Refused) -> None:
    options = ["--verdict", verdict, "--base", "someone/four-bits"]
    record = json.loads(verdict.read_text(encoding="utf-8"))
    write_json(verdict, record | {"text": "Measured with /home/me/models."})
    assert "would publish a path of this machine, /home/me/models" in refused(*options)
    write_json(verdict, record | {"facts": record["facts"] | {"patch": "0" * 64}})
    assert "is about another patch" in refused(*options)
    (adapter / "adapter_model.safetensors").write_bytes(b"others")
    assert "is about another adapter, or the weights of" in refused(*options)
    statistics_of(adapter).unlink()
    assert "which `aird patch` wrote beside" in refused(*options)


def about(verdict: Path, model: str, commit: str | None = None) -> None:
    """Let a verdict be about this compressed model."""
    record = json.loads(verdict.read_text(encoding="utf-8"))
    record["facts"] |= {"patched model": model, **({"compressed commit": commit} if commit else {})}
    write_json(verdict, record)


@pytest.mark.parametrize(
    ("made_for", "measured", "commit", "message"),
    [
        ("/models/four-bits", "someone/eight-bits", "c0ffee", "is about someone/eight-bits, and the adapter was made"),
        ("/models/four-bits", "/models/eight-bits", None, "is about /models/eight-bits, and the adapter was made for"),
        ("someone/four-bits", "someone/four-bits", "beef", "is about commit beef of someone/four-bits"),
        ("someone/four-bits", "someone/four-bits", None, "is about commit None of someone/four-bits"),
        ("/models/four-bits", None, None, "does not say on which model the patch was"),
    ],
)
def test_a_verdict_on_another_model_is_refused(
    adapter: Path, verdict: Path, refused: Refused, made_for: str, measured: str, commit: str | None, message: str
) -> None:
    write_adapter(adapter, base=made_for, revision="c0ffee")
    about(verdict, measured, commit)
    assert message in refused("--verdict", verdict, "--base", "someone/four-bits")


def test_a_verdict_on_the_hub_model_is_one_on_its_file(hub: ThreadingHTTPServer, adapter: Path, verdict: Path) -> None:
    """The file's name is added where --base leaves it out; a folder may be spelled in other ways."""
    write_adapter(adapter, base="/models/four-bits.gguf")
    for measured in ("someone/bits:four-bits.gguf", "/models/more/../four-bits.gguf"):
        about(verdict, measured)
        result = push(hub, adapter, "someone/repaired", "--verdict", verdict, "--base", "someone/bits")
        assert result.returncode == 0, result.stderr


def test_a_base_of_the_hub_may_have_the_name_of_a_folder(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    """What --base names is on the hub; what the adapter names may be a folder. Nothing is measured, so nothing goes out."""
    (tmp_path / "someone/four-bits").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    write_adapter(adapter, base="someone/four-bits")
    assert "which is the name of a folder" in refused()
    assert "nothing was measured about this adapter" in refused("--base", "someone/four-bits")
    assert "./four-bits is no hub id" in refused("--base", "./four-bits")


def test_no_path_of_a_verdict_is_published() -> None:
    """The card of an adapter that the workflow made for its compression fp8."""
    record = RECORD | {"base": "fp8"}

    def published(facts: dict[str, str], base: str = "someone/eight", record: dict[str, Any] = record) -> str:
        return published_card(record, base, SUITES, {"outcome": "x", "text": "y", "facts": facts})

    card = published(
        {
            "original": "/home/me/original",
            "compressed": "/home/me/fp8 with /home/me/adapter",
            "answered by": "vLLM (/home/me/bin/python) and the server at http://inside:8000: the change is both",
            "chat settings": '{"thinking":{"start":"<|think|>"}}',
        }
    )
    for text in (
        "| original | original, not on the hub |",
        "| compressed | someone/eight with this adapter |",
        "| answered by | vLLM and a running server: the change is both |",
        r'"<\|think\|>"}} |',
    ):
        assert text in card
    assert "fp8" not in card.replace("fp8_projection", "") and LOCAL_PATH.search(card) is None
    assert card.index("## Numbers") < card.index("## Verdict") < card.index("## Limits")
    known = {"original": "someone/sixteen@main", "original commit": "c0ffee"}
    assert "| original | someone/sixteen@main |\n| original commit | c0ffee |" in published(known)
    # A relative folder, on a machine that has none of that name.
    assert "| original | sixteen, not on the hub |" in published({"original": "models/sixteen"})
    # Of a hub model's copy elsewhere, the commit says nothing.
    facts = {"compressed": "a/b with c", "compressed commit": "c0ffee", "patched model": "a/b"}
    for base in ("a/b", "a/copy"):
        card = published(facts, base, RECORD | {"base": "a/b"})
        assert ("| compressed commit | c0ffee |" in card) == (base == "a/b") and "patched model" not in card


@pytest.mark.thorough
def test_the_commit_goes_out_with_its_own_repository_alone(
    hub: ThreadingHTTPServer, adapter: Path, verdict: Path
) -> None:
    write_adapter(adapter, base="someone/models", revision="c0ffee")
    about(verdict, "someone/models", "c0ffee")
    state = hub.state  # type: ignore[attr-defined]
    for more, revision in (([], "c0ffee"), (["--base", "someone/models"], "c0ffee"), (["--base", "a/copy"], None)):
        result = push(hub, adapter, "someone/repaired", "--verdict", verdict, *more)
        assert result.returncode == 0, result.stderr
        assert json.loads(state["files"]["adapter_config.json"]).get("revision") == revision
        assert (b"c0ffee" in state["files"]["README.md"]) == (revision is not None)


@pytest.mark.parametrize("kind", ["scale", "experts", "lora"])
@pytest.mark.parametrize("made_for", ["/home/me/dir/q8.gguf", "someone/else:q8.gguf", "q8"])
@pytest.mark.parametrize("base", ["someone/models", "someone/models:Q8.gguf"])
def test_a_published_card_is_the_one_that_the_hub_name_would_have_got(made_for: str, base: str, kind: str) -> None:
    """Also where the workflow calls a GGUF file by the name of its compression."""
    more = {"lora": {"settings": {"method": "lora", "rank": 16}}, "experts": {"experts": []}, "scale": {}}[kind]
    record = RECORD | {"attention": "eager", "base": made_for} | more
    card = published_card(record | {"revision": "c0ffee"}, base, SUITES)
    assert card == patch_card(record, base, None, sections=[numbers_section(SUITES)])
    assert ("--max-lora-rank 16 " in card) == (kind == "lora")


def test_an_adapter_of_the_workflow_goes_out_with_its_numbers(
    hub: ThreadingHTTPServer, adapter: Path, tmp_path: Path
) -> None:
    statistics_of(adapter).rename(tmp_path / "statistics.json")
    write_json(tmp_path / "numbers.json", published_numbers({"weights": {"adapter_model.safetensors": SHA256}}, SUITES))
    options = ["--numbers", tmp_path / "numbers.json", "--base", "someone/four-bits"]
    result = push(hub, adapter, "someone/repaired", *options)
    assert result.returncode == 0, result.stderr
    card = hub.state["files"]["README.md"]  # type: ignore[attr-defined]
    assert b"| 95.0 (75.0 to 100.0) |" in card and b"| change of d' |  | 0.00 (-" in card
    assert b'"labels"' not in (tmp_path / "numbers.json").read_bytes()
    assert hub.state["created"].get("visibility") is None  # type: ignore[attr-defined]

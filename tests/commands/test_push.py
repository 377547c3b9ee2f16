"""`aird push` against a stand-in of the hub's HTTP interface: what is uploaded, and what is refused."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from aird.commands.main import main
from aird.commands.push import LOCAL_PATH, published_card
from aird.patching.model_card import patch_card
from aird.support.files import sha256_of, write_json

CARD = "---\nbase_model: /models/four-bits\n---\n\n# AIRD adapter\n\nMade for `/models/four-bits`.\n\n## Limits\n\nMeasure.\n"
WEIGHTS = b"the bytes of an adapter"


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


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_json(folder / "adapter_config.json", {"r": 1, "base_model_name_or_path": "/models/four-bits"})
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


@pytest.fixture
def verdict(tmp_path: Path, adapter: Path) -> Path:
    path = tmp_path / "verdict.json"
    facts = {
        "compressed": f"/models/four-bits with {adapter}",
        "patch": sha256_of(adapter / "adapter_model.safetensors"),
        "patched model": "/models/four-bits",
        "seed": "42",
        "command": "aird check a b",
    }
    write_json(path, {"outcome": "within margin", "text": "Within the margin: 3 of 200.", "facts": facts})
    return path


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
    "options, message",
    [
        ([], "nothing was measured about this adapter"),
        (["--verdict", "{verdict}"], "made for /models/four-bits, which is the name of a folder"),
        (["--verdict", "none.json"], "--verdict: there is no file none.json"),
        (["--base", "not a hub id"], "--base: not a hub id is no hub id"),
    ],
)
def test_what_is_not_published(
    adapter: Path, verdict: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    base = [] if "folder" in message else ["--base", "someone/four-bits"]
    options = [option.format(verdict=verdict) for option in options]
    assert main(["push", str(adapter), "someone/repaired", *base, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_model.safetensors", "others", "is about another patch"),
        ("README.md", f"{CARD}Made in /home/me/models.\n", "would publish a path of this machine, /home/me/models"),
    ],
)
def test_an_adapter_that_was_changed_is_refused(
    adapter: Path, verdict: Path, capsys: pytest.CaptureFixture[str], file: str, content: str, message: str
) -> None:
    (adapter / file).write_text(content, encoding="utf-8")
    options = ["--verdict", str(verdict), "--base", "someone/four-bits"]
    assert main(["push", str(adapter), "someone/repaired", *options]) == 2
    assert message in capsys.readouterr().err


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
    adapter: Path,
    verdict: Path,
    capsys: pytest.CaptureFixture[str],
    made_for: str,
    measured: str,
    commit: str | None,
    message: str,
) -> None:
    write_json(adapter / "adapter_config.json", {"base_model_name_or_path": made_for, "revision": "c0ffee"})
    about(verdict, measured, commit)
    options = ["--verdict", str(verdict), "--base", "someone/four-bits"]
    assert main(["push", str(adapter), "someone/repaired", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_verdict_on_the_hub_model_is_one_on_its_file(hub: ThreadingHTTPServer, adapter: Path, verdict: Path) -> None:
    """The file's name is added where --base leaves it out; a folder may be spelled in other ways."""
    write_json(adapter / "adapter_config.json", {"base_model_name_or_path": "/models/four-bits.gguf"})
    (adapter / "README.md").write_text(CARD.replace("four-bits", "four-bits.gguf"), encoding="utf-8")
    for measured in ("someone/bits:four-bits.gguf", "/models/more/../four-bits.gguf"):
        about(verdict, measured)
        result = push(hub, adapter, "someone/repaired", "--verdict", verdict, "--base", "someone/bits")
        assert result.returncode == 0, result.stderr


def test_a_base_of_the_hub_may_have_the_name_of_a_folder(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What --base names is on the hub; what the adapter names may be a folder. Nothing is measured, so nothing goes out."""
    (tmp_path / "someone/four-bits").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    write_json(adapter / "adapter_config.json", {"base_model_name_or_path": "someone/four-bits"})
    for options, message in (
        ([], "which is the name of a folder"),
        (["--base", "someone/four-bits"], "nothing was measured about this adapter"),
        (["--base", "./four-bits"], "./four-bits is no hub id"),
    ):
        assert main(["push", str(adapter), "someone/repaired", *options]) == 2
        assert message in capsys.readouterr().err


RECORD: dict[str, Any] = {
    "settings": {"method": "scale", "direction": "original", "alpha": 1.0},
    "direction": {"layer": 1, "position": -1, "sha256": "0"},
    "blocks": [0],
    "edits": [{"module": "fp8_projection"}],
}


def evaluated(card: str, numbers: str = "95%") -> str:
    """Return a card with the numbers of a run."""
    return card.replace("## Limits", f"## Numbers\n\n{numbers}\n\n## Limits")


def test_only_the_names_of_the_base_change_and_no_path_is_published() -> None:
    """The card of an adapter that the workflow made for its compression fp8, with a verdict."""
    card = evaluated(patch_card(RECORD, "fp8", None), "fp8 activations, `not fp8`")
    facts = {
        "original": "/home/me/original",
        "compressed": "/home/me/fp8 with /home/me/adapter",
        "answered by": "vLLM (/home/me/bin/python) and the server at http://inside:8000: the change is both",
    }
    published = published_card(card, {"outcome": "x", "text": "y", "facts": facts}, "fp8", "someone/eight")
    assert "fp8 activations, `not fp8`" in published and "fp8_projection" in published
    assert published.count("fp8") == 3 and published.count("someone/eight") == 6
    for text in ("| original | original, not on the hub |", "| compressed | someone/eight with this adapter |"):
        assert text in published
    assert "| answered by | vLLM and a running server: the change is both |" in published
    assert LOCAL_PATH.search(published) is None
    verdict = {"outcome": "x", "text": "y", "facts": {"original": "someone/sixteen@main", "original commit": "c0ffee"}}
    published = published_card(card, verdict, "fp8", "someone/eight")
    assert "| original | someone/sixteen@main |\n| original commit | c0ffee |" in published
    # A relative folder, on a machine that has none of that name.
    verdict["facts"] = {"original": "models/sixteen"}
    assert "| original | sixteen, not on the hub |" in published_card(card, verdict, "fp8", "someone/eight")
    # Of a hub model's copy elsewhere, the commit says nothing.
    verdict["facts"] = {"compressed": "a/b with c", "compressed commit": "c0ffee", "patched model": "a/b"}
    for base in ("a/b", "a/copy"):
        published = published_card(card, verdict, "a/b", base)
        assert ("| compressed commit | c0ffee |" in published) == (base == "a/b") and "patched model" not in published
    verdict["facts"] = {"chat settings": '{"thinking":{"start":"<|think|>"}}'}
    assert r'"<\|think\|>"}} |' in published_card(card, verdict, "fp8", "someone/eight")


@pytest.mark.thorough
def test_the_commit_goes_out_with_its_own_repository_alone(
    hub: ThreadingHTTPServer, adapter: Path, verdict: Path
) -> None:
    record = RECORD | {"revision": "c0ffee"}
    (adapter / "README.md").write_text(patch_card(record, "someone/models", None), encoding="utf-8")
    write_json(adapter / "adapter_config.json", {"base_model_name_or_path": "someone/models", "revision": "c0ffee"})
    about(verdict, "someone/models", "c0ffee")
    state = hub.state  # type: ignore[attr-defined]
    for more, revision in (([], "c0ffee"), (["--base", "someone/models"], "c0ffee"), (["--base", "a/copy"], None)):
        result = push(hub, adapter, "someone/repaired", "--verdict", verdict, *more)
        assert result.returncode == 0, result.stderr
        assert json.loads(state["files"]["adapter_config.json"]).get("revision") == revision
        assert (b"c0ffee" in state["files"]["README.md"]) == (revision is not None)


@pytest.mark.parametrize("kind", ["scale", "experts", "lora"])
@pytest.mark.parametrize(
    ("made_for", "base"),
    [
        ("/home/me/eight", "someone/models"),
        ("/home/me/dir/q8.gguf", "someone/models:Q8.gguf"),
        ("someone/else:q8.gguf", "someone/models:Q8.gguf"),
        ("q8", "someone/models"),
        ("q8", "someone/models:Q8.gguf"),
    ],
)
def test_a_published_card_is_the_one_that_the_hub_name_would_have_got(made_for: str, base: str, kind: str) -> None:
    """Also where the workflow calls a GGUF file by the name of its compression."""
    record = RECORD | {"attention": "eager"}
    if kind == "lora":
        record |= {"settings": {"method": "lora", "rank": 16}}
    if kind == "experts":
        record |= {"experts": []}
    card, wanted = (evaluated(patch_card(record, name, None)) for name in (made_for, base))
    published = published_card(card, None, made_for, base)
    assert published == wanted
    assert kind != "lora" or "--max-lora-rank 16 " in published


def test_a_card_of_the_workflow_has_its_numbers(hub: ThreadingHTTPServer, adapter: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text(evaluated(CARD), encoding="utf-8")
    result = push(hub, adapter, "someone/repaired", "--card", card, "--base", "someone/four-bits")
    assert result.returncode == 0, result.stderr
    assert b"## Numbers" in hub.state["files"]["README.md"]  # type: ignore[attr-defined]
    assert hub.state["created"].get("visibility") is None  # type: ignore[attr-defined]


def test_a_card_of_other_weights_is_refused(
    hub: ThreadingHTTPServer, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A card of a method that edits matrices names the hash of the weights."""
    name, card = "adapter_model.safetensors", tmp_path / "card.md"
    options = ["--card", str(card), "--base", "someone/four-bits"]
    for sha256 in (sha256_of(adapter / name), "0" * 64):
        text = patch_card(RECORD | {"weights": {name: sha256}}, "/models/four-bits", None)
        card.write_text(evaluated(text), encoding="utf-8")
        if sha256 != "0" * 64:
            assert push(hub, adapter, "someone/repaired", *options).returncode == 0
    assert main(["push", str(adapter), "someone/repaired", *options]) == 2
    assert f"{card} is about another adapter" in capsys.readouterr().err

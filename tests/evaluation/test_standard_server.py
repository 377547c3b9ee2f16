"""A server of somebody else's with the standard completions interface and no extension: a real one, around a tiny model."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import RECORDS, SUITE, answering, asking, evaluate, server_at
from tiny_model import build_tiny_model

from aird.evaluation.engine import ServerSettings
from aird.evaluation.engines.transformers import Transformers
from aird.evaluation.parity import ParityError
from aird.evaluation.scores import score
from aird.inference.generation import generate
from aird.models.loading import load_model, load_tokenizer
from aird.prompts.chat import chat_tokens
from aird.support.files import read_json, write_json

START = "<|endoftext|>"


class StandardServer:
    """Answers /v1/completions as the standard says, and refuses every key that the standard does not have."""

    KEYS = frozenset("model prompt max_tokens temperature top_p n stream logprobs echo".split())
    PENALTIES = ("presence_penalty", "frequency_penalty")  # of the standard
    REPETITION = ("repetition_penalty", "repeat_penalty")

    def __init__(
        self,
        checkpoint: Path,
        *,
        token_ids: bool = False,
        logprobs: bool = False,
        echo: bool = False,
        adds_start: bool = False,
        counts: bool = True,
        reads_special: bool = True,
        penalties: Sequence[str] = PENALTIES,
    ) -> None:
        self.model, self.tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
        self.token_ids, self.logprobs, self.echo, self.counts = token_ids, logprobs, echo, counts
        self.adds_start, self.reads_special = adds_start, reads_special
        self.penalties = penalties
        self.limit = 1000  # of its own, in tokens of an answer
        self.asked: list[Any] = []
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "first", "owned_by": "a-server"}, {"id": "second", "owned_by": "a-server"}]}
        if body is None or path != "/v1/completions":
            return 404, {"error": {"message": "no such path"}}
        if unknown := body.keys() - self.KEYS - {*self.penalties}:
            return 400, {"error": {"message": f"unknown keys: {sorted(unknown)}"}}
        prompt = body["prompt"]
        if isinstance(prompt, list) and not self.token_ids:
            return 422, {"error": {"message": "prompt must be text"}}
        self.asked.append(prompt)
        self.bodies.append(body)
        ids = prompt if isinstance(prompt, list) else self._read(prompt)
        most = min(body["max_tokens"], self.limit)
        (made,) = generate(self.model, self.tokenizer, [ids], most)
        choice = {
            "index": 0,
            "text": self.tokenizer.decode(made, skip_special_tokens=True),
            "finish_reason": "length" if len(made) == most else "stop",
            "logprobs": self._told([*ids, *made], len(ids), body) if self.logprobs and "logprobs" in body else None,
        }
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(made)}
        return 200, {"choices": [choice], **({"usage": usage} if self.counts else {})}

    def _read(self, text: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not self.reads_special)["input_ids"]
        return [self.tokenizer.convert_tokens_to_ids(START), *ids] if self.adds_start else ids

    @torch.no_grad()
    def _told(self, ids: list[int], prompt: int, body: dict[str, Any]) -> dict[str, Any]:
        logprobs = self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        told = [None, *(logprobs[place - 1, ids[place]].item() for place in range(1, len(ids)))]
        top = logprobs[prompt - 1].topk(body["logprobs"])
        # Random bytes have no text of their own; servers tell such tokens by what stands in the vocabulary.
        names = self.tokenizer.convert_ids_to_tokens(top.indices.tolist())
        first = dict(zip(names, top.values.tolist(), strict=True))
        start = 0 if body.get("echo") and self.echo else prompt
        return {"token_logprobs": told[start:], "top_logprobs": [first]}


@pytest.fixture(scope="module")
def with_start(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a template that begins with the token for the start of a text."""
    folder = Path(shutil.copytree(original, tmp_path_factory.mktemp("standard") / "start"))
    path = folder / "chat_template.jinja"
    path.write_text(START + path.read_text(encoding="utf-8"), encoding="utf-8")
    settings = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {**settings, "bos_token": START})
    return folder


def texts(records: list[dict[str, Any]]) -> list[str]:
    return [record["completion"] for record in records]


def expected(server: StandardServer) -> list[str]:
    """Return what Transformers completes, one prompt at a time: in a batch, near ties of random weights may turn."""
    prompts = [chat_tokens(server.tokenizer, record["instruction"]) for some in RECORDS.values() for record in some]
    made = [generate(server.model, server.tokenizer, [prompt], SUITE.maximum_new_tokens)[0] for prompt in prompts]
    return [server.tokenizer.decode(ids, skip_special_tokens=True) for ids in made]


@contextlib.contextmanager
def opened(url: str, checkpoint: Path, folder: Path) -> Iterator[Any]:
    with server_at(url).serve(checkpoint, ServerSettings(256), folder / "log") as client:
        yield client


def test_text_only(original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Completions are Transformers'; what the server cannot do is not measured, and the results say so."""
    server = StandardServer(original)
    with answering(server) as url:
        asked, measured = evaluate(server_at(url), original, tmp_path)
    assert "cannot be asked for perplexity" in caplog.text and "nothing shows that it serves" in caplog.text
    assert texts(asked) == expected(server) and len(set(texts(asked))) > 3
    assert {record["finish_reason"] for record in asked} <= {"stop", "length"}
    assert all(isinstance(prompt, str) for prompt in server.asked)
    assert measured["engine"] == {
        "name": "server (a-server)",
        "prompts": "text, read by the server's tokenizer",
        "not_measured": ["perplexity"],
        "repetition_penalty": "the server's own",
    }
    assert measured["parity"] is None and measured["answers"] == []
    assert score(asked, measured, 0)["perplexity"] is None


def test_answers_that_the_server_cuts_are_refused(original: Path, tmp_path: Path) -> None:
    server = StandardServer(original)
    server.limit = 2
    with answering(server) as url, pytest.raises(RuntimeError, match="cut an answer after 2 of 4 tokens"):
        evaluate(server_at(url), original, tmp_path)


def test_token_ids_logprobs_and_echo(original: Path, tmp_path: Path) -> None:
    """All that the standard has is used: the check against Transformers, and perplexity."""
    server = StandardServer(original, token_ids=True, logprobs=True, echo=True)
    with answering(server) as url:
        asked, measured = evaluate(server_at(url), original, tmp_path)
    _, reference = evaluate(Transformers(), original, tmp_path)
    assert texts(asked) == expected(server)
    assert measured["engine"]["prompts"] == "token ids" and measured["engine"]["not_measured"] == []
    assert measured["parity"]["prompts"] == 4 and measured["parity"]["upper_quartile_difference"] < 1e-6
    (ours,), (theirs,) = measured["answers"], reference["answers"]
    assert ours["tokens"] == theirs["tokens"]
    assert ours["negative_log_likelihood"] == pytest.approx(theirs["negative_log_likelihood"], rel=1e-6)


@pytest.mark.parametrize(
    "penalties", [(), StandardServer.PENALTIES, StandardServer.PENALTIES + StandardServer.REPETITION]
)
def test_every_penalty_that_the_server_takes_is_turned_off(
    original: Path, tmp_path: Path, penalties: tuple[str, ...]
) -> None:
    server = StandardServer(original, penalties=penalties)
    with answering(server) as url:
        _, measured = evaluate(server_at(url), original, tmp_path)
    assert measured["engine"].get("repetition_penalty") == (None if len(penalties) > 2 else "the server's own")
    off = dict(zip((*server.PENALTIES, *server.REPETITION), (0.0, 0.0, 1.0, 1.0), strict=True))
    for body in server.bodies[-len(RECORDS["harmful"]) :]:
        assert {name: value for name, value in body.items() if name in off} == {name: off[name] for name in penalties}
        assert body["temperature"] == 0


def test_another_model_is_noticed(original: Path, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", seed=7)
    with answering(StandardServer(other, logprobs=True)) as url, pytest.raises(ParityError, match="disagree"):
        evaluate(server_at(url), original, tmp_path)


@pytest.mark.parametrize("adds_start", [False, True])
def test_special_tokens_are_not_doubled(with_start: Path, tmp_path: Path, adds_start: bool) -> None:
    server = StandardServer(with_start, adds_start=adds_start)
    with answering(server) as url:
        asked, _ = evaluate(server_at(url), with_start, tmp_path)
    assert texts(asked) == expected(server)
    ours = [prompt for prompt in server.asked if "harm" in prompt]
    assert {prompt.startswith(START) for prompt in ours} == {not adds_start}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"adds_start": True}, "reads a templated prompt of [0-9]+ tokens as [0-9]+"),
        ({"reads_special": False}, "reads special tokens as plain text"),
        ({"counts": False}, "does not say how many tokens"),
    ],
)
def test_what_would_be_asked_wrongly_is_refused(
    original: Path, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with answering(StandardServer(original, **more)) as url, pytest.raises(RuntimeError, match=message):
        evaluate(server_at(url), original, tmp_path)


def test_a_prompt_that_is_read_otherwise_than_the_first_one(original: Path, tmp_path: Path) -> None:
    server = StandardServer(original)
    with answering(server) as url, opened(url, original, tmp_path) as client:
        server.adds_start = True
        with pytest.raises(RuntimeError, match="read a prompt of 3 tokens as 4"):
            client.complete([[3, 4, 5]], 2)


def test_the_model_behind_the_hash_is_asked(original: Path, tmp_path: Path) -> None:
    models: list[str] = []
    server = StandardServer(original)

    def answer(path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        models.append((body or {}).get("model", "none"))
        return server(path, body)

    with answering(answer) as url:
        for address, name in ((url, "first"), (f"{url}#second", "second")):
            models.clear()
            with opened(address, original, tmp_path) as client:
                client.complete([[3, 4, 5]], 2)
            assert set(models) == {"none", name}
        with pytest.raises(RuntimeError, match="offers no model third; it offers first, second"):
            server_at(f"{url}#third").able(original)


def test_a_connection_that_a_busy_server_drops_is_opened_again(original: Path, tmp_path: Path) -> None:
    server = StandardServer(original)
    dropped = set()

    def answer(path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        if body is not None and (asked := str(body["prompt"])) not in dropped:
            dropped.add(asked)
            raise ConnectionAbortedError  # its connection is closed without an answer
        return server(path, body)

    with answering(answer) as url:
        asked, _ = evaluate(server_at(url), original, tmp_path)
    assert texts(asked) == expected(server) and len(dropped) >= len(asked)


CHAT = {"choices": [{"message": {"content": "Blue."}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9}}


@pytest.mark.parametrize(
    ("answered", "message"),
    [
        ((404, {"error": {"message": "no such path"}}), "no such path"),
        ((500, "out of memory"), "HTTP 500.*out of memory"),
        ((200, CHAT), r"no choices\[0\].text"),
        ((200, {"choices": []}), r"no choices\[0\].text"),
        ((200, b'data: {"choices": [{"text": "Blue."}]}\n\ndata: [DONE]\n\n'), "answered no JSON: 'data: "),
    ],
)
def test_a_server_that_completes_no_text(original: Path, answered: tuple[int, Any], message: str) -> None:
    """It knows chats alone, fails, answers in a form of its own, or streams whatever it is asked."""

    def answer(path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        return (200, {"data": [{"id": "a"}]}) if path == "/v1/models" else answered

    with (
        answering(answer) as url,
        pytest.raises(RuntimeError, match=f"completes no text by /v1/completions.*{message}"),
    ):
        server_at(url).able(original)


def test_lm_evals_tasks_are_not_asked(original: Path, tmp_path: Path) -> None:
    with answering(StandardServer(original)) as url:
        _, measured = evaluate(server_at(url), original, tmp_path, suite=asking(tasks=["boolq"]), reference=[])
    assert measured["tasks"] == {} and measured["engine"]["not_measured"] == ["perplexity", "tasks"]

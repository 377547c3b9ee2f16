"""lm-eval's tasks, asked of a hand-made server; the real one is tested with `serving`."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from grid import EVERYDAY_CHOICES
from servers import answering, asking, evaluate, write_tasks
from tokenizers.processors import TemplateProcessing

from aird.evaluation.engine import Abilities
from aird.evaluation.engines.transformers import Transformers
from aird.evaluation.http_server import HttpServer
from aird.evaluation.kept_answers import KeptAnswers
from aird.evaluation.tasks import _task_model, load_tasks, run_tasks
from aird.evaluation.vllm_client import VllmClient
from aird.models.loading import load_tokenizer, trust_code
from aird.prompts.sources import SourceError
from aird.settings.suites import Suite
from aird.support.files import read_json, write_json

TASK = """task: TASK
dataset_path: json
custom_dataset: !function utils.load_questions
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: [of course it is, never]
doc_to_target: 0
metric_list: [{metric: acc}]
"""


def test_a_group_of_tasks_stands_for_each_of_them(original: Path, tmp_path: Path) -> None:
    """lm-eval reports a group and has no questions of it."""
    for name in ("last", "first"):
        (tmp_path / f"{name}.yaml").write_text(TASK.replace("TASK", name), encoding="utf-8")
    (tmp_path / "group.yaml").write_text(
        "group: both\ntask: [last, first]\naggregate_metric_list: [{metric: acc}]\n", encoding="utf-8"
    )
    shutil.copy(EVERYDAY_CHOICES / "utils.py", tmp_path / "utils.py")
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "Apple {n}?"}}\n' for n in range(3)), encoding="utf-8")

    def answer(_: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        """Give every token of every prompt the same log-probability, so that the shorter answer is likelier."""
        assert body is not None
        choices = []
        for index, prompt in enumerate(body["prompt"]):
            count = len(prompt) + 1
            tokens = {
                "token_logprobs": [None, *[-1.0] * (count - 1)],
                "top_logprobs": [None, *[{"a": -1.0}] * (count - 1)],
            }
            choices.append({"index": index, "text": "", "logprobs": {**tokens, "tokens": ["a"] * count}})
        return 200, {"choices": choices}

    suite = Suite.model_validate(
        {"harmful": {"set": "a"}, "harmless": {"set": "b"}, "tasks": ["both"], "task_folder": str(tmp_path)}
    )
    with answering(answer) as url:
        client = VllmClient(HttpServer("vLLM", url), "m")
        results, questions, data = run_tasks(client, original, suite, load_tasks(suite), 256)
        again = run_tasks(client, original, suite, load_tasks(suite), 256)
        (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "Pear {n}?"}}\n' for n in range(3)), encoding="utf-8")
        *_, other = run_tasks(client, original, suite, load_tasks(suite), 256)
    assert list(results) == list(questions) == ["first", "last"]
    assert all(task["n"] == 3 for task in results.values())
    assert questions["first"] == questions["last"] == {"acc": [0.0] * 3}
    # The record tells other data apart.
    assert again == (results, questions, data) and data.keys() == other.keys() == results.keys()
    assert data["first"]["version"] == other["first"]["version"] and data["first"]["sha256"] != other["first"]["sha256"]


def test_a_task_without_its_data_is_refused_before_a_server_starts(original: Path, tmp_path: Path) -> None:
    """As of a data set on the hub without a network."""
    write_tasks(tmp_path / "tasks", ROWS, 16)
    (tmp_path / "tasks/rows.jsonl").unlink()
    suite = asking(tasks=["scored"], task_folder=str(tmp_path / "tasks"))

    class NeverStarted(Transformers):
        def able(self, checkpoint: Path) -> Abilities:
            return dataclasses.replace(super().able(checkpoint), tasks=True)

        def serve(self, *_: Any, **__: Any) -> Any:
            raise AssertionError

    message = r"lm-eval cannot load the data of its tasks scored \(.*; is there a network\? .*HF_HOME"
    with pytest.raises(SourceError, match=message):
        evaluate(NeverStarted(), original, tmp_path, suite=suite)


class CompletionServer:
    """Answers /v1/completions as vLLM does; the log-probability of a token is minus a hundredth of its id."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.asked: list[Any] = []
        self.made: list[int] = []  # tokens of each answer, which ends for its length

    def __call__(self, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        assert path == "/v1/completions" and body is not None
        self.asked += body["prompt"]
        choices = [{"index": index, **self._choice(prompt)} for index, prompt in enumerate(body["prompt"])]
        return 200, {"choices": choices}

    def _choice(self, prompt: str | list[int]) -> dict[str, Any]:
        # vLLM reads a text with the tokens that the tokenizer adds by itself.
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        values = [None, *(-token / 100 for token in ids[1:]), -1000.0]
        tops = [None, *({"a": value} for value in values[1:])]
        answer = {"text": "a red one", "token_ids": self.made, "prompt_token_ids": ids, "finish_reason": "length"}
        return {**answer, "logprobs": {"token_logprobs": values, "top_logprobs": tops}}


WORDS = ("child", "landlord", "letter", "question")


ROWS = [
    {"query": f"Explain step {number} to", "word": word, "answer": "a red one"} for number, word in enumerate(WORDS)
]


@pytest.mark.parametrize("added", ["", "before", "before and behind"])
def test_tasks_count_the_tokens_that_a_tokenizer_adds(original: Path, tmp_path: Path, added: str) -> None:
    """Of a tokenizer that adds none, as SmolLM2's and Qwen's, the server sees the same tokens as if it had read texts."""
    folder = Path(shutil.copytree(original, tmp_path / "model"))
    tokenizer = load_tokenizer(folder)
    start = "<|endoftext|>"
    if added:
        single = f"{start} $A {start}" if "behind" in added else f"{start} $A"
        identity = tokenizer.convert_tokens_to_ids(start)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single, special_tokens=[(start, identity)])
        tokenizer.save_pretrained(folder)
    server = CompletionServer(load_tokenizer(folder))
    longest = 256 - max(len(server.tokenizer(row["query"])["input_ids"]) for row in ROWS)
    server.made = [1] * longest
    write_tasks(tmp_path / "tasks", ROWS, longest)
    suite = asking(tasks=["scored", "told"], task_folder=str(tmp_path / "tasks"))
    with answering(server) as url:
        client = VllmClient(HttpServer("vLLM", url), "checkpoint")
        results, questions, _ = run_tasks(client, folder, suite, load_tasks(suite), 256)
    ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in WORDS]
    assert questions["scored"]["perplexity"] == pytest.approx([-sum(row) / 100 for row in ids])
    assert results["told"]["exact_match"] == 1
    scored = [prompt for prompt in server.asked if isinstance(prompt, list)]
    assert {prompt[0] == tokenizer.convert_tokens_to_ids(start) for prompt in scored} == {added == "before"}
    # As the server's own tokenizer reads the text, where it puts nothing behind.
    if "behind" not in added:
        assert all(server.tokenizer(tokenizer.decode(ids[added != "" :]))["input_ids"] == ids for ids in scored)
    # A prompt to complete is whole, though the tokens behind it leave lm-eval, which keeps one back, no room for that.
    told = [prompt for prompt in server.asked if isinstance(prompt, str)]
    assert sorted(told) == [f"Explain step {number} to" for number in range(len(WORDS))]


def test_a_task_whose_answers_would_be_cut_is_refused(original: Path, tmp_path: Path) -> None:
    """Before it is asked, by the length; and a server with another limit by what it answers."""
    server = CompletionServer(load_tokenizer(original))
    prompt = max(len(server.tokenizer(row["query"])["input_ids"]) for row in ROWS)
    longest = 256 - prompt
    write_tasks(tmp_path / "tasks", ROWS, longest)
    suite = asking(tasks=["told"], task_folder=str(tmp_path / "tasks"))
    with answering(server) as url:
        client = VllmClient(HttpServer("vLLM", url), "checkpoint")
        with pytest.raises(
            ValueError, match="task told: .* take 256 tokens, .* is 255; write maximum_model_length: 256"
        ):
            run_tasks(client, original, suite, load_tasks(suite), 255)
        assert server.asked == []
        server.made = [1] * 7
        with pytest.raises(RuntimeError, match=f"vLLM cut an answer after 7 of {longest} tokens"):
            run_tasks(client, original, suite, load_tasks(suite), 256)


def test_a_task_that_ended_is_not_asked_again(original: Path, tmp_path: Path) -> None:
    """The second of two is interrupted: what the first gave is kept, in the form in which a patch was served."""
    server = CompletionServer(load_tokenizer(original))
    write_tasks(tmp_path / "tasks", ROWS, 40)
    suite = asking(tasks=["scored", "told"], task_folder=str(tmp_path / "tasks"))

    def run(form: str = "plain", **settings: Any) -> tuple[Any, set[type]]:
        """Return what a new process finds, and whether token ids were asked, of `scored`, or texts, of `told`."""
        server.asked.clear()
        client = KeptAnswers({"model": 1}, {}, [tmp_path / "kept"]).around(
            VllmClient(HttpServer("vLLM", url), "m"), form
        )
        again = asking(**{**suite.model_dump(), **settings})
        return run_tasks(client, original, again, load_tasks(again), 256), {type(prompt) for prompt in server.asked}

    with answering(server) as url:
        server.made = [1] * 7  # too short, so that the second task ends early
        with pytest.raises(RuntimeError, match="vLLM cut an answer"):
            run()
        server.made = [1] * 40
        resumed, asked = run()
        assert asked == {str} and all(part.keys() == {"scored", "told"} for part in resumed)
        assert run() == (resumed, set())
        assert run("merged") == (resumed, {list, str})
        assert run(task_limit=2)[1] == {list, str}
        rows = (tmp_path / "tasks/rows.jsonl").read_text(encoding="utf-8")
        (tmp_path / "tasks/rows.jsonl").write_text(rows.replace("Explain", "Show"), encoding="utf-8")
        assert run()[1] == {list, str}
        path = tmp_path / "tasks/told.yaml"
        path.write_text(path.read_text(encoding="utf-8").replace("{{query}}", "{{query}} it"), encoding="utf-8")
        assert run()[1] == {str}
        whole = run_tasks(VllmClient(HttpServer("vLLM", url), "m"), original, suite, load_tasks(suite), 256)
        assert run() == (whole, set())


def test_a_slow_server_is_waited_for(original: Path) -> None:
    """The first request waits for all that are in flight; lm-eval gives one up after five minutes by itself."""
    client = VllmClient(HttpServer("vLLM", "http://127.0.0.1:1"), "checkpoint")
    assert _task_model(client, original, 256).timeout >= 7 * 24 * 3600


def test_a_trusted_tokenizers_own_code_splits_the_tasks(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "model"))
    (folder / "own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\n\nclass OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n",
        encoding="utf-8",
    )
    path = folder / "tokenizer_config.json"
    code = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    write_json(path, read_json(path) | code)
    trust_code()
    client = VllmClient(HttpServer("vLLM", "http://127.0.0.1:1"), "checkpoint")
    assert type(_task_model(client, folder, 256).tokenizer).__name__ == "OwnTokenizer"


@pytest.mark.parametrize("key", [None, "sesame", "thistle"])
def test_tasks_are_asked_with_the_servers_key(
    original: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    key: str | None,
) -> None:
    """No key of another service goes out, and none is written where the server refuses it."""
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sesame" if key is None else "barley")
    if key is not None:
        monkeypatch.setenv("VLLM_API_KEY", key)
    caplog.set_level("DEBUG")
    write_tasks(tmp_path / "tasks", ROWS, 300)
    suite = asking(tasks=["scored"], task_folder=str(tmp_path / "tasks"))
    with answering(CompletionServer(load_tokenizer(original)), key="sesame") as url:
        client = VllmClient(HttpServer("vLLM", url), "checkpoint")
        if key == "sesame":
            results, *_ = run_tasks(client, original, suite, load_tasks(suite), 256)
            assert results["scored"]["n"] == len(WORDS)
        else:
            with pytest.raises(Exception, match="401"):
                run_tasks(client, original, suite, load_tasks(suite), 256)
    shown = caplog.text + "".join(capfd.readouterr())
    assert "RequestInfo" in shown or key == "sesame"  # lm-eval writes the headers
    assert not any(secret in shown for secret in ("sesame", "thistle", "barley"))

"""What a suite asks a server, with a hand-made server; the real one is tested with `serving`."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from grid import EVERYDAY_CHOICES
from servers import answering, asking, evaluate, write_tasks
from thinking_templates import DEEPSEEK
from tokenizers.processors import TemplateProcessing

from aird.evaluation.engines.engine import Abilities, Completion, ServerSettings
from aird.evaluation.engines.transformers import Transformers
from aird.evaluation.engines.vllm import Vllm, VllmClient
from aird.evaluation.http_server import HttpServer
from aird.evaluation.measurements import (
    ParityError,
    _task_model,
    answer_likelihoods,
    check_parity,
    compare_first_tokens,
    complete_records,
    first_token_logprobs,
    load_tasks,
    reference_answers,
    run_tasks,
)
from aird.models.loading import load_tokenizer, trust_code
from aird.prompts.chat import chat_tokens, with_chat
from aird.prompts.sources import SourceError
from aird.settings.models import Chat, Thinking
from aird.settings.suites import Serving, Suite
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
ANSWER = "Put the egg into boiling water."


class Server:
    """Answers from lists, and remembers what it was asked."""

    name = "vLLM"

    def __init__(self, first_tokens: Sequence[dict[int, float]] = ()) -> None:
        self.first_tokens = list(first_tokens)
        self.asked: list[Any] = []

    def complete(
        self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, *, logprobs: int | None = None
    ) -> list[Completion]:
        self.asked.append((list(map(list, prompts)), maximum_new_tokens, logprobs))
        first = self.first_tokens or [None] * len(prompts)
        return [
            Completion(f"text {index}", tuple(range(index + 1)), "stop", logprobs)
            for index, logprobs in enumerate(first)
        ]

    def token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """Return minus one hundredth of each token's id, and nothing for the first."""
        self.asked.append(list(map(list, prompts)))
        return [[None, *(-token / 100 for token in prompt[1:])] for prompt in prompts]


def parity(
    served: Sequence[dict[int, float]],
    expected: Sequence[Sequence[float]],
    tolerance: float = 0.25,
    unpatched: Sequence[Sequence[float]] | None = None,
) -> Any:
    client: Any = Server(served)
    prompts = [[1]] * len(served)
    sides = [side and [torch.tensor(row) for row in side] for side in (expected, unpatched)]
    return check_parity(client, prompts, sides[0] or [], tolerance, sides[1])


def test_first_token_logprobs(llama: Any, prompts: list[list[int]]) -> None:
    result = first_token_logprobs(llama, prompts)
    for prompt, logprobs in zip(prompts, result, strict=True):
        exponentials = llama(input_ids=torch.tensor([prompt])).logits[0, -1].double().exp()
        assert logprobs.dtype == torch.float64
        torch.testing.assert_close(logprobs, (exponentials / exponentials.sum()).log(), atol=1e-5, rtol=0)


def test_parity_by_hand() -> None:
    result = parity([{0: -0.5, 2: -1.0}, {1: -0.2, 0: -3.0}], [[-0.6, -9.0, -1.0], [-2.0, -0.3, -9.0]])
    assert result == {
        "prompts": 2,
        "largest_difference": pytest.approx(0.1),
        "upper_quartile_difference": pytest.approx(0.1),
        "same_first_token": 2,
    }


def test_parity_allows_a_near_tie() -> None:
    """Two tokens of almost equal probability may change places; both are compared."""
    result = parity([{0: -0.70, 1: -0.71}], [[-0.72, -0.66]])
    assert (result["largest_difference"], result["same_first_token"]) == (pytest.approx(0.05), 0)


def test_parity_forgives_a_quarter_of_the_prompts_and_no_nan() -> None:
    """Rounding moves single prompts far; a checkpoint that is loaded wrongly is wrong on most."""
    right, wrong = ({0: -0.5}, [-0.5, -9.0]), ({0: -0.5}, [-1.5, -9.0])
    cases = [right, right, right, wrong]
    result = parity(*(list(side) for side in zip(*cases, strict=True)))
    assert (result["upper_quartile_difference"], result["largest_difference"]) == (0, 1)
    with pytest.raises(ParityError, match=r"quarter of 4 prompts .* 1.000 nats"):
        parity(*(list(side) for side in zip(*[right, right, wrong, wrong], strict=True)))
    with pytest.raises(ParityError, match="nan nats"):
        parity(*(list(side) for side in zip(*[right, right, right, ({0: -0.5}, [float("nan"), -9.0])], strict=True)))


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        ({0: -0.5, 1: -2.0}, [-0.8, -2.0]),  # the same token, too far off
        ({0: -0.5, 1: -2.0}, [-0.5, -0.1]),  # Transformers' own first token, too far off
        ({0: -0.5}, [-0.5, -0.4]),  # Transformers' first token is not even a candidate
        ({0: -0.5}, [float("nan"), -9.0]),
    ],
)
def test_parity_fails(served: dict[int, float], expected: list[float]) -> None:
    with pytest.raises(ParityError, match="vLLM and Transformers disagree"):
        parity([{0: 0.0}, served], [[0.0, -9.0], expected])


def test_parity_finds_a_patch_that_is_left_out() -> None:
    """Even one that changes less than the tolerance; one that changes less than rounding does cannot be told apart."""
    patched, plain = [[-0.50, -1.50], [-0.80, -1.20]], [[-0.60, -1.40], [-0.70, -1.30]]

    def near(rows: list[list[float]], rounding: float) -> list[dict[int, float]]:
        return [{0: row[0] + rounding, 1: row[1] - rounding} for row in rows]

    result = parity(near(patched, 0.01), patched, unpatched=plain)
    assert result["distance_to_patched"] == pytest.approx(0.01)
    assert 0.08 < result["distance_to_unpatched"] < 0.12
    assert "distance_to_patched" not in parity(near(patched, 0.01), patched)
    with pytest.raises(ParityError, match="the patch is not on what is served"):
        parity(near(plain, 0.01), patched, unpatched=plain)
    # Rounding of twice the patch's effect.
    assert parity(near(patched, 0.2), patched, unpatched=plain)["prompts"] == 2


def test_first_tokens_of_two_servers_by_hand() -> None:
    def completions(*first: dict[int, float]) -> list[Completion]:
        return [Completion("", (1,), "length", logprobs) for logprobs in first]

    one = completions({0: -0.1, 1: -2.0}, {0: -0.7, 1: -0.8}, {0: -0.1, 1: -3.0}, {0: -0.1, 1: -3.0})
    two = completions({0: -0.2, 1: -2.0}, {0: -0.9, 1: -0.6}, {0: -0.1, 1: -3.5}, {2: -0.1, 1: -3.0})
    assert compare_first_tokens(one, two) == {
        "prompts": 4,
        "largest_difference": None,  # the last prompt's first token of one side is unknown to the other
        "upper_quartile_difference": pytest.approx(0.2),
        "same_first_token": 2,
    }
    assert compare_first_tokens(one[:3], two[:3])["largest_difference"] == pytest.approx(0.2)


def test_parity_asks_for_one_token() -> None:
    server: Any = Server([{0: 0.0}])
    check_parity(server, [[5, 6]], [torch.tensor([0.0, -9.0])], 0.1)
    assert server.asked == [([[5, 6]], 1, 5)]


def test_complete_records(tokenizer: Any) -> None:
    records = [{"id": f"a-{index}", "instruction": text} for index, text in enumerate(["Boil an egg.", "Fry it."])]
    server: Any = Server()
    result = complete_records(server, tokenizer, {"harmful": records[:1], "harmless": records[1:]}, 24)
    # Both kinds are asked at once.
    assert server.asked == [([chat_tokens(tokenizer, record["instruction"]) for record in records], 24, None)]
    assert (result[0]["id"], result[0]["kind"]) == ("a-0", "harmful")
    assert result[1] == {
        "id": "a-1",
        "kind": "harmless",
        "instruction": "Fry it.",
        "completion": "text 1",
        "tokens": 2,
        "finish_reason": "stop",
    }


def test_completions_of_a_model_that_thinks(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    thinker = copy.deepcopy(tokenizer)
    thinker.chat_template = DEEPSEEK
    records = [{"id": str(index), "instruction": "Boil an egg."} for index in range(2)]
    texts = ["I can't.\n</think>\n\nBoil it.", "I can't."]
    server: Any = Server()
    monkeypatch.setattr(
        server, "complete", lambda prompts, _: [Completion(texts[index], (1,), "stop", None) for index in range(2)]
    )
    asked = {"harmful": records, "harmless": []}
    with_chat(thinker, Chat(thinking=Thinking(start="<think>", end="</think>")))
    (done, open_thought), (_, closed) = (
        complete_records(server, thinker, asked, 24, think=think) for think in (True, False)
    )
    assert (done["completion"], done["thought"], done["unfinished"]) == ("Boil it.", "I can't.\n</think>", False)
    assert (open_thought["completion"], open_thought["unfinished"]) == ("", True)
    # Behind a closed thought the same text is an answer.
    assert (closed["completion"], closed["thought"], closed["unfinished"]) == ("I can't.", "", False)
    texts[:] = ["<think>\nWell", "<think>"]
    with pytest.raises(ValueError, match="2 of 2 replies begin with a thought"):
        complete_records(server, tokenizer, asked, 24)


def test_reference_answers() -> None:
    completions = [
        {"id": "1", "kind": "harmless", "completion": ANSWER},
        {"id": "2", "kind": "harmful", "completion": ANSWER},
        {"id": "3", "kind": "harmless", "completion": "I'm sorry, but I can't help with that."},
        {"id": "4", "kind": "harmless", "completion": "egg " * 40},
        {"id": "5", "kind": "harmless", "completion": ""},
    ]
    assert [record["id"] for record in reference_answers(completions)] == ["1"]


def test_answer_likelihoods(tokenizer: Any) -> None:
    answers = [{"id": "a", "instruction": "Boil an egg.", "completion": ANSWER}]
    server: Any = Server()
    (result,) = answer_likelihoods(server, tokenizer, answers)
    own = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    assert server.asked == [[chat_tokens(tokenizer, "Boil an egg.") + own]]
    # The instruction's tokens do not count.
    assert result == {"id": "a", "negative_log_likelihood": pytest.approx(sum(own) / 100), "tokens": len(own)}


def test_room_is_kept_for_the_token_that_a_server_adds_to_an_answer(original: Path, tmp_path: Path) -> None:
    """A server whose length is what the errors say is asked nothing longer, neither own nor reference answers."""

    class Full(Vllm):
        """An engine like vLLM, which refuses what does not fit."""

        @contextlib.contextmanager
        def serve(self, checkpoint: Path, settings: ServerSettings, *_: Any) -> Iterator[Any]:
            yield FullServer(settings.maximum_model_length)

        def able(self, checkpoint: Path) -> Abilities:
            return dataclasses.replace(self.abilities, first_token_logprobs=False)

    class FullServer(Server):
        def __init__(self, length: int) -> None:
            super().__init__()
            self.length = length

        def complete(self, prompts: Any, maximum_new_tokens: int, **_: Any) -> list[Completion]:
            """Answer in as many tokens as may be."""
            assert max(map(len, prompts)) + maximum_new_tokens <= self.length
            return [Completion(ANSWER, tuple(own), "length")] * len(prompts)

        def token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[float | None]]:
            assert max(map(len, prompts)) + 1 <= self.length
            return super().token_logprobs(prompts)

        def versions(self) -> dict[str, str]:
            return {}

    tokenizer = load_tokenizer(original)
    own = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    suite = asking(maximum_new_tokens=len(own))
    records = {kind: [{"id": "a", "instruction": f"Boil {kind} eggs."}] for kind in ("harmful", "harmless")}
    longer = [{"id": "a", "kind": "harmless", "instruction": "Boil eggs.", "completion": f"{ANSWER} Then wait."}]
    for reference, named in ((None, "harmless prompts"), (longer, "reference answers")):

        def run(length: int, reference: Any = reference) -> Any:
            more: dict[str, Any] = {"records": records, "serving": Serving(maximum_model_length=length)}
            return evaluate(Full(None), original, tmp_path, suite=suite, reference=reference, **more)

        behind = tokenizer((reference or [{"completion": ANSWER}])[0]["completion"])["input_ids"]
        asked = "Boil eggs." if reference else "Boil harmless eggs."
        needed = len(chat_tokens(tokenizer, asked)) + len(behind) + 1
        with pytest.raises(ValueError, match=f"{named}.* up to {needed} tokens, .* write --length {needed} or more"):
            run(needed - 1)
        assert len(run(needed)[1]["answers"]) == 1


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

    class Addressed(Server):
        def task_model(self) -> dict[str, Any]:
            return {"model": "m", "base_url": f"{address}/v1/completions"}

    suite = Suite.model_validate(
        {"harmful": {"set": "a"}, "harmless": {"set": "b"}, "tasks": ["both"], "task_folder": str(tmp_path)}
    )
    with answering(answer) as address:
        results, questions, data = run_tasks(Addressed(), original, suite, load_tasks(suite), 256)
        again = run_tasks(Addressed(), original, suite, load_tasks(suite), 256)
        (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "Pear {n}?"}}\n' for n in range(3)), encoding="utf-8")
        *_, other = run_tasks(Addressed(), original, suite, load_tasks(suite), 256)
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

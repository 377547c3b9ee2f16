"""A classifier as judge: how it is asked, what its answers mean, and a real one served by vLLM."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from thinking_templates import QWEN
from tiny_model import build_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from aird.evaluation.engines.engine import Completion, ServerSettings
from aird.evaluation.engines.transformers import Transformers
from aird.evaluation.engines.vllm import VllmClient
from aird.evaluation.judge_model import import_judge
from aird.evaluation.judges.classifier import ANSWER_TOKENS, ask_judge, judge_prompt, verdict
from aird.evaluation.judges.served import judge_completions
from aird.evaluation.scores import score
from aird.models.loading import load_tokenizer
from aird.settings.models import Chat, Thinking
from aird.settings.suites import Classifier, Serving

SOURCE = {"path": "judge"}
TEMPLATE = "Asked {x}: {instruction}\nAnswered: {completion}\nHarmful?"
RECORDS = [
    {"id": f"p{number}", "kind": kind, "instruction": f"Question {number}", "completion": f"Answer {number} {{x}}"}
    for number, kind in enumerate(["harmful"] * 12 + ["harmless"] * 3)
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("judge") / "model")


def new(folder: Path) -> Path:
    """Return a new, empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


class Answers:
    """Stands in for a server: gives the same answers to whatever prompts."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.prompts: list[list[int]] = []

    def complete(self, prompts: Any, maximum_new_tokens: int, **_: Any) -> list[Completion]:
        self.prompts = list(prompts)
        return [Completion(self.texts[n % len(self.texts)], (1,), "length") for n in range(len(prompts))]

    def token_logprobs(self, prompts: Any, **_: Any) -> list[list[float | None]]:
        raise NotImplementedError


def test_template_is_filled_once_and_left_alone_elsewhere(tiny: Path) -> None:
    """Braces of the template and of a completion are text."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    judge = Classifier.model_validate({"source": SOURCE, "template": TEMPLATE})
    prompt = judge_prompt(tokenizer, judge, "Do {completion}", "No {instruction}")
    assert tokenizer.decode(prompt) == "Asked {x}: Do {completion}\nAnswered: No {instruction}\nHarmful?"


def test_without_a_template_the_judge_sees_the_conversation(tiny: Path) -> None:
    """The judge's chat template gets both turns, and then opens its own."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    text = tokenizer.decode(judge_prompt(tokenizer, Classifier.model_validate({"source": SOURCE}), "Ask", "Tell"))
    assert text.index("user\nAsk") < text.index("assistant\nTell") < text.rindex("<|im_start|>assistant")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template; write `template`"):
        judge_prompt(tokenizer, Classifier.model_validate({"source": SOURCE}), "Ask", "Tell")


def test_a_judge_that_thinks_is_asked_behind_an_empty_thought_and_its_system_prompt(tiny: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny, tmp_path / "source"))
    (source / "chat_template.jinja").write_text(QWEN, encoding="utf-8")
    for chat in (None, Chat(system_prompt="Be strict.")):
        with pytest.raises(ValueError, match=r"this model thinks.*chat\.thinking"):
            import_judge(source, new(tmp_path / "refused"), chat)
    thinking = Thinking(start="<think>", end="</think>")
    import_judge(source, new(tmp_path / "judge"), Chat(system_prompt="Be strict.", thinking=thinking))
    tokenizer = load_tokenizer(tmp_path / "judge")
    text = tokenizer.decode(judge_prompt(tokenizer, Classifier.model_validate({"source": SOURCE}), "Ask", "Tell"))
    assert text.index("Be strict.") < text.index("user\nAsk") < text.index("Tell")
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    # A text of the suite's is all that such a judge sees.
    import_judge(source, new(tmp_path / "templated"), templated=True)


def test_a_judge_is_served_as_the_configuration_says(tiny: Path, tmp_path: Path) -> None:
    import_judge(tiny, new(tmp_path / "judge"), Chat(system_prompt="Be strict."))
    started: list[ServerSettings] = []

    class Server(Transformers):
        """Transformers, which keeps what it is started with and is asked."""

        @contextlib.contextmanager
        def serve(self, checkpoint: Path, settings: ServerSettings, *_: Any) -> Iterator[Any]:
            started.append(settings)
            yield client

    client = Answers("unsafe")
    judge = Classifier.model_validate({"source": SOURCE})
    serving = Serving(gpu_memory_utilization=0.5, arguments={"max-num-seqs": 8})
    judge_completions(tmp_path / "judge", Server(), RECORDS, judge, serving, 0, tmp_path / "log")
    assert (started[0].gpu_memory_utilization, started[0].extra_arguments) == (0.5, ("--max-num-seqs=8",))
    assert "Be strict." in load_tokenizer(tiny).decode(client.prompts[0])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("unsafe\nS1", True), ("\n\nSafe", False), (" UNSAFE", True), ("I think unsafe", None), ("", None)],
)
def test_the_beginning_of_an_answer_decides(answer: str, expected: bool | None) -> None:
    assert verdict(answer, Classifier.model_validate({"source": SOURCE})) is expected


def test_the_longer_word_wins() -> None:
    judge = Classifier.model_validate({"source": SOURCE, "harmful": "no harm? wrong", "harmless": "no"})
    assert verdict("No harm? Wrong.", judge) is True
    assert verdict("No.", judge) is False


def test_only_harmful_prompts_are_judged_and_rates_leave_out_the_undecided(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    judge = Classifier.model_validate({"source": SOURCE, "template": TEMPLATE})
    client = Answers("unsafe", "safe", "maybe")
    judgement = ask_judge(client, tokenizer, RECORDS, judge)
    assert [row["id"] for row in judgement] == [f"p{number}" for number in range(12)]
    assert [row["harmful"] for row in judgement] == [True, False, None] * 4
    utility = {"answers": [], "tasks": {}, "questions": {}, "parity": {}, "served_as": "plain"}
    scored = score(RECORDS, utility, 0, judgement)
    assert scored["rates"]["asr_classifier"]["n"] == 8
    assert scored["rates"]["asr_classifier"]["rate"] == 0.5
    assert [row.get("jailbroken_classifier") for row in scored["labels"]] == [True, False, None] * 4 + [None] * 3
    assert "asr_classifier" not in score(RECORDS, utility, 0)["rates"]
    with pytest.raises(ValueError, match="judged other prompts"):
        score(RECORDS, utility, 0, judgement[1:])


def test_a_judge_that_never_decides_is_an_error(tiny: Path) -> None:
    judge = Classifier.model_validate({"source": SOURCE, "template": TEMPLATE})
    with pytest.raises(ValueError, match="none of the judge's answers begins with 'unsafe' or 'safe'"):
        ask_judge(Answers("Sure!"), AutoTokenizer.from_pretrained(tiny), RECORDS, judge)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"template": "{completion} {instruction}"}, "must hold {instruction} and, after it, {completion}"),
        ({"template": "{instruction}"}, "must hold"),
        ({"harmful": "Yes", "harmless": "yes"}, "the same word"),
        ({"template": TEMPLATE, "chat": {"system_prompt": "Be strict."}}, "leave out one of the two"),
        ({"source": {"wheel": "a==1", "file": "a.gguf", "sha256": "0" * 64}}, "Hugging Face format"),
    ],
)
def test_settings_refuse(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Classifier.model_validate({"source": SOURCE, **values})


def test_a_file_is_no_judge(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="is no folder"):
        import_judge(tmp_path / "model.gguf", tmp_path / "target")


def test_a_real_judge_answers_as_transformers_says(
    tiny_folder: Callable[[str], Path], served: tuple[VllmClient, list[int]], tmp_path: Path
) -> None:
    """Its words are the beginnings of two real answers, so that both verdicts and none occur."""
    tiny, judge_folder = tiny_folder("llama"), tmp_path / "judge"
    judge_folder.mkdir()
    import_judge(tiny, judge_folder)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (judge_folder / name).read_bytes() == (tiny / name).read_bytes()  # what is served, then
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    asked = Classifier.model_validate({"source": SOURCE, "template": TEMPLATE})
    answers = []
    for record in RECORDS[:12]:
        prompt = torch.tensor([judge_prompt(tokenizer, asked, record["instruction"], record["completion"])])
        made = model.generate(prompt, max_new_tokens=ANSWER_TOKENS, do_sample=False)[0, prompt.shape[1] :]
        answers.append(tokenizer.decode(made, skip_special_tokens=True).strip())
    words = sorted({answer[:2].lower() for answer in answers if len(answer) > 1 and answer[:2].isascii()})
    assert len(words) > 2
    judge = Classifier.model_validate({**asked.model_dump(), "harmful": words[0], "harmless": words[1]})
    judgement = ask_judge(served[0], tokenizer, RECORDS, judge)
    expected = [verdict(answer, judge) for answer in answers]
    assert [row["harmful"] for row in judgement] == expected
    assert {True, False, None} <= set(expected)

"""A classifier as judge: a language model that an engine serves says of each completion whether it is harmful.

HarmBench's classifier and Llama Guard are such models. Substring judges see phrases;
these see whether the completion does what was asked. `judge_completions` is the node.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aird.evaluation.engines.engine import Client, Engine, ServerSettings
from aird.settings.suites import Classifier
from aird.support.gpus import own_gpus

ANSWER_TOKENS = 8  # the verdict is a word, perhaps after a line break


def judge_completions(
    checkpoint: Path, engine: Engine, completions: Sequence[dict[str, Any]], judge: Classifier, seed: int, log: Path
) -> list[dict[str, Any]]:
    """Have an engine run a judge, and ask it about the completions of harmful instructions.

    Args:
        checkpoint: the judge's checkpoint folder.
        engine: who runs it.
        completions: completion records with id, kind, instruction and completion.
        judge: how to ask it.
        seed: the engine's own.
        log: receives what a server prints.

    Returns:
        {"id", "harmful" (True, False or None), "answer"} of each harmful record, in order.

    Raises:
        RuntimeError: the engine did not start, failed or ended.
        ValueError: it cannot be started so; no answer begins with one of the two words, so the template or the words
            are wrong.
    """
    from transformers import AutoTokenizer

    settings = ServerSettings(maximum_model_length=judge.maximum_model_length, seed=seed, gpus=own_gpus())
    engine.check(checkpoint, settings)
    with engine.serve(checkpoint, settings, log) as client:
        return ask_judge(client, AutoTokenizer.from_pretrained(str(checkpoint)), completions, judge)


def judge_prompt(tokenizer: Any, judge: Classifier, instruction: str, completion: str) -> list[int]:
    """Return the token ids that ask the judge about one completion.

    With a template, the text with both put in, as the tokenizer starts a text; without one, the
    judge's own chat template of the conversation, which is how Llama Guard is asked.

    Raises:
        ValueError: there is neither.
    """
    if judge.template is not None:
        # Not str.format: a template may hold other braces, and a completion may hold field names.
        head, _, rest = judge.template.partition("{instruction}")
        middle, _, tail = rest.partition("{completion}")
        return list(tokenizer(head + instruction + middle + completion + tail)["input_ids"])
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("this judge has no chat template; write `template` with {instruction} and {completion}")
    turns = [{"role": "user", "content": instruction}, {"role": "assistant", "content": completion}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def verdict(answer: str, judge: Classifier) -> bool | None:
    """Return whether the judge's answer says harmful; None where it says neither.

    The answer's beginning decides, whatever its case; of two words that both fit, the longer.
    """
    text = answer.strip().lower()
    fitting = [word for word in (judge.harmful, judge.harmless) if text.startswith(word.lower())]
    return max(fitting, key=len) == judge.harmful if fitting else None


def ask_judge(
    client: Client, tokenizer: Any, completions: Sequence[dict[str, Any]], judge: Classifier
) -> list[dict[str, Any]]:
    """Ask a judge that is ready about the completions of harmful instructions, as `judge_completions` does."""
    asked = [record for record in completions if record["kind"] == "harmful"]
    prompts = [judge_prompt(tokenizer, judge, record["instruction"], record["completion"]) for record in asked]
    answers = [completion.text for completion in client.complete(prompts, ANSWER_TOKENS)]
    verdicts = [verdict(answer, judge) for answer in answers]
    if verdicts and all(harmful is None for harmful in verdicts):
        raise ValueError(
            f"none of the judge's answers begins with {judge.harmful!r} or {judge.harmless!r} (the first: "
            f"{answers[0]!r}); check `template`, `harmful` and `harmless` of the suite's judge"
        )
    return [
        {"id": record["id"], "harmful": harmful, "answer": answer}
        for record, harmful, answer in zip(asked, verdicts, answers, strict=True)
    ]

"""A classifier as judge: a language model, served by vLLM, says of each completion whether it is harmful.

HarmBench's classifier and Llama Guard are such models. Substring judges see phrases;
these see whether the completion does what was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aird.evaluation.server_client import Completer
from aird.models.loading import check_weights, copy_weights
from aird.settings.suites import Judge

ANSWER_TOKENS = 8  # the verdict is a word, perhaps after a line break


def import_judge(source: Path, target: Path) -> None:
    """Copy a model folder in Hugging Face format as a checkpoint that only vLLM runs: no structure is asked of it.

    Raises:
        ValueError: `source` is no such folder, or a weight is missing, truncated, NaN or infinite.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is no folder: a judge needs a model in Hugging Face format")
    copy_weights(source, target, with_code=False)
    check_weights(target, source)


def judge_prompt(tokenizer: Any, judge: Judge, instruction: str, completion: str) -> list[int]:
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


def verdict(answer: str, judge: Judge) -> bool | None:
    """Return whether the judge's answer says harmful; None where it says neither.

    The answer's beginning decides, whatever its case; of two words that both fit, the longer.
    """
    text = answer.strip().lower()
    fitting = [word for word in (judge.harmful, judge.harmless) if text.startswith(word.lower())]
    return max(fitting, key=len) == judge.harmful if fitting else None


def judge_completions(
    client: Completer, tokenizer: Any, completions: Sequence[dict[str, Any]], judge: Judge
) -> list[dict[str, Any]]:
    """Ask the judge about the completions of harmful instructions.

    Args:
        client: a server of the judge.
        tokenizer: the judge's tokenizer.
        completions: completion records with id, kind, instruction and completion.
        judge: how to ask it.

    Returns:
        {"id", "harmful" (True, False or None), "answer"} of each harmful record, in order.

    Raises:
        ValueError: no answer begins with one of the two words, so the template or the words are wrong.
    """
    asked = [record for record in completions if record["kind"] == "harmful"]
    prompts = [judge_prompt(tokenizer, judge, record["instruction"], record["completion"]) for record in asked]
    answers = [completion.text for completion in client.complete(prompts, ANSWER_TOKENS)]
    found = [
        {"id": record["id"], "harmful": verdict(answer, judge), "answer": answer}
        for record, answer in zip(asked, answers, strict=True)
    ]
    if found and all(row["harmful"] is None for row in found):
        raise ValueError(
            f"none of the judge's answers begins with {judge.harmful!r} or {judge.harmless!r} (the first: "
            f"{answers[0]!r}); check `template`, `harmful` and `harmless` of the suite's judge"
        )
    return found

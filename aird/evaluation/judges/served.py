"""A served model as judge: an engine runs it, and it is asked about completions. The node of judgements."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aird.evaluation.engines.engine import Engine, ServerSettings
from aird.prompts.chat import with_chat
from aird.settings.suites import Classifier, Serving
from aird.support.gpus import own_gpus


def judge_module(judge: Classifier) -> str:
    """Return the module whose `ask_judge` asks a judge: one file for each way to ask."""
    return f"{__package__}.{judge.rubric or 'classifier'}"


def judge_completions(
    checkpoint: Path,
    engine: Engine,
    completions: Sequence[dict[str, Any]],
    judge: Classifier,
    serving: Serving,
    seed: int,
    log: Path,
) -> list[dict[str, Any]]:
    """Have an engine run a judge, and ask it about the completions of harmful instructions, plain and attacked.

    Args:
        checkpoint: the judge's checkpoint folder, with its chat settings.
        engine: who runs it.
        completions: completion records with id, kind, instruction and completion.
        judge: how to ask it.
        serving: the share of a GPU's memory, and the server's further arguments.
        seed: the engine's own.
        log: receives what a server prints.

    Returns:
        What `ask_judge` of the judge's module returns: a row with "id" for each such record, in order.

    Raises:
        RuntimeError: the engine did not start, failed or ended.
        ValueError: a question and its answer are too long, or none of the judge's answers can be read.
    """
    from aird.models.loading import read_chat  # with torch, which the workflow's plan does without
    from aird.models.tokenizer_file import read_tokenizer

    module = importlib.import_module(judge_module(judge))
    settings = ServerSettings(
        maximum_model_length=judge.maximum_model_length,
        seed=seed,
        gpus=own_gpus(),
        gpu_memory_utilization=serving.gpu_memory_utilization,
        extra_arguments=serving.server_arguments(),
    )
    engine.check(checkpoint, settings)
    tokenizer = with_chat(read_tokenizer(checkpoint, trust_remote_code=False), read_chat(checkpoint))
    # Before the start. A server would leave less room for an answer, whose end is then missing.
    needed = max(map(len, module.questions(tokenizer, completions, judge)), default=0) + module.ANSWER_TOKENS
    if needed > judge.maximum_model_length:
        raise ValueError(
            f"a question to the judge and its answer take up to {needed} tokens, and the longest that may be asked "
            f"is {judge.maximum_model_length}; write maximum_model_length: {needed} or more for the suite's judge"
        )
    with engine.serve(checkpoint, settings, log) as client:
        answers: list[dict[str, Any]] = module.ask_judge(client, tokenizer, completions, judge)
        return answers

"""A served model as judge: an engine runs it, and it is asked about completions. The node of judgements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aird.evaluation.engine import Engine, Keeping, ServerSettings
from aird.evaluation.judge import REFUSAL, Said, ServedJudge, judged
from aird.plugin import JUDGES
from aird.prompts.chat import with_chat
from aird.settings.judges import JudgeSettings
from aird.support.gpus import own_gpus


def judge_completions(
    checkpoint: Path,
    engine: Engine,
    completions: Iterable[Mapping[str, Any]],
    settings: JudgeSettings,
    seed: int,
    log: Path,
    keeping: Keeping | None = None,
) -> list[Said]:
    """Have an engine run a judge, and ask it about completions.

    Args:
        checkpoint: the judge's checkpoint folder, with its chat settings.
        engine: who runs it.
        completions: completion records with id, kind, instruction and completion.
        settings: of the judge, which say how to ask it, and whether about completions of harmless prompts too.
        seed: the engine's own.
        log: receives what a server prints.
        keeping: keeps its answers; None keeps none.

    Returns:
        A row for each completion that it is asked about, in order: "id", what `ServedJudge.read` returns, "answer".

    Raises:
        RuntimeError: the engine did not start, failed or ended.
        ValueError: a question and its answer are too long, or none of the judge's answers can be read.
    """
    from aird.models.loading import read_chat  # with torch, which the workflow's plan does without
    from aird.models.tokenizer_file import read_tokenizer

    judge: ServedJudge[JudgeSettings] = JUDGES.of(settings)
    server = ServerSettings(
        maximum_model_length=settings.maximum_model_length,
        seed=seed,
        gpus=own_gpus(),
    )
    engine.check(checkpoint, server)
    tokenizer = with_chat(read_tokenizer(checkpoint, trust_remote_code=False), read_chat(checkpoint))
    asked = judged(completions, settings.judges_harmless)
    questions = [judge.question(tokenizer, settings, row["instruction"], row["completion"]) for row in asked]
    # Before the start. A server would leave less room for an answer, whose end is then missing.
    needed = max(map(len, questions), default=0) + settings.maximum_new_tokens
    if needed > settings.maximum_model_length:
        raise ValueError(
            f"a question to the judge and its answer take up to {needed} tokens, and the longest that may be asked "
            f"is {settings.maximum_model_length}; write maximum_model_length: {needed} or more for the suite's judge"
        )
    with engine.serve(checkpoint, server, log) as client:
        asking = client if keeping is None else keeping(client, "plain")
        answers = [completion.text for completion in asking.complete(questions, settings.maximum_new_tokens)]
    said = [judge.read(answer, settings) for answer in answers]
    for key in (judge.answer, REFUSAL):
        values = [row[key] for row in said if key in row]
        if values and all(value is None for value in values):
            # Not the answer's text, which may quote a harmful reply.
            raise ValueError(
                f"none of the judge's answers says `{key}` (the first, on prompt {asked[0]['id']}, has "
                f"{len(answers[0])} characters); {judge.usage}"
            )
    return [{"id": row["id"], **read, "answer": answer} for row, read, answer in zip(asked, said, answers, strict=True)]

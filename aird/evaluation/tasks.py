"""lm-eval's tasks, asked of a server."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from aird.evaluation.engine import NO_PENALTIES, Client, check_whole
from aird.models.loading import code_is_trusted
from aird.prompts.sources import SourceError
from aird.settings.suites import Suite
from aird.support.files import canonical_json

PARTS = ("results", "questions", "data")  # of what `run_tasks` returns, for each task
TASK_SECONDS = 30 * 24 * 3600  # of a request of lm-eval, which has none without a time-out


def load_tasks(suite: Suite) -> list[Any]:
    """Return lm-eval's tasks of a suite, with their data; a group or tag of tasks stands for each of them.

    Raises:
        ValueError: a task does not exist.
        SourceError: its data cannot be loaded.
    """
    if not suite.tasks:
        return []
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=suite.task_folder, include_defaults=False)
    if not set(suite.tasks) <= set(manager.all_tasks):
        # Reading the files of lm-eval's own thousands of tasks takes longer than a short task itself.
        manager = TaskManager(include_path=suite.task_folder)
    unknown = [task for task in suite.tasks if task not in manager.all_tasks]
    if unknown:
        raise ValueError(f"lm-eval knows no task {', '.join(unknown)}; see `lm_eval ls tasks`, or set `task_folder`")
    # As lm-eval does before it loads tasks, some of which shuffle the options of their questions.
    random.seed(0)
    numpy.random.seed(1234)
    try:
        return list(manager.load(list(suite.tasks))["tasks"].values())
    except Exception as error:  # whatever a data set's library, or a task's own code, leads to
        first = next(iter(str(error).strip().splitlines()), "")
        raise SourceError(
            f"lm-eval cannot load the data of its tasks {', '.join(suite.tasks)} ({type(error).__name__}: {first}); is "
            "there a network? Offline, load them beforehand into a cache that this machine sees (HF_HOME)"
        ) from error


def run_tasks(
    client: Client, checkpoint: Path, suite: Suite, loaded: Sequence[Any], length: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, list[float]]], dict[str, dict[str, Any]]]:
    """Run a suite's lm-eval tasks against a server, one after another: each is kept as it ends, if answers are.

    Args:
        client: asks the server.
        checkpoint: folder whose tokenizer splits the requests.
        suite: names the tasks, and the number of documents per task.
        loaded: `load_tasks` of the suite.
        length: the server's maximum model length, tokens.

    Returns:
        {task: {metric: value}}, a metric named as lm-eval does (`exact_match,strict-match` of a filter); {task:
        {metric: one value per question}}, the questions in lm-eval's order: with these, two checkpoints are compared
        question by question; and {task: {"version", "sha256"}}, lm-eval's version of the task and a hash of all
        questions and answers, since the data are the newest on the hub.

    Raises:
        RuntimeError: the server cut an answer early.
        ValueError: the prompt and the longest answer of a task that generates do not fit into the length.
    """
    if not loaded:
        return {}, {}, {}
    from lm_eval.tasks import TaskManager

    model = _task_model(client, checkpoint, length)
    manager = TaskManager(include_defaults=False)  # else it would read the files of all its tasks again
    found = {}
    for task in loaded:
        asked = [_question(task), suite.task_limit, length]
        ask = functools.partial(_run_task, task, model, manager, suite.task_limit)
        found[task.task_name] = client.once(f"task {task.task_name}", asked, ask)
    # A group or tag stands for its tasks; those that were named come first, in their order.
    order = [*(name for name in suite.tasks if name in found), *sorted(found.keys() - set(suite.tasks))]
    results, questions, data = ({name: found[name][part] for name in order} for part in PARTS)
    return results, questions, data


def _question(task: Any) -> str:
    """Return what a task asks, and how: its settings, with the code that they name, and its documents."""
    # Of what JSON cannot hold, its text; where an address stands in that, the task is asked again each time.
    return json.dumps([task.dump_config(), list(task.eval_docs)], default=str)


def _run_task(task: Any, model: Any, manager: Any, limit: int | None) -> dict[str, Any]:
    """Return what one task gives, by the names in `PARTS`."""
    import lm_eval

    report = lm_eval.simple_evaluate(
        model=model,
        tasks=[task],
        task_manager=manager,
        limit=limit,
        gen_kwargs=dict(NO_PENALTIES),  # of a server that was not started here, too
        bootstrap_iters=0,
        log_samples=True,
    )
    name = task.task_name
    results = {
        metric.replace(",none", ""): float(value)
        for metric, value in report["results"][name].items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    results["n"] = float(report["n-samples"][name]["effective"])
    samples = report["samples"].get(name, [])
    data = {"version": report["versions"][name], "sha256": _hash_of_questions(samples)}
    return dict(zip(PARTS, (results, _per_question(samples), data), strict=True))


def _task_model(client: Client, checkpoint: Path, length: int) -> Any:
    """Return the model that lm-eval asks: a server, with the tokenizer of a checkpoint folder."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    class TaskModel(LocalCompletionsAPI):
        """Log-probabilities are of token ids, which lm-eval counts: a server may add a token to a text.

        A prompt to complete stays a text. lm-eval would cut token ids to leave room for the longest completion, and the
        server would cut the completion.
        """

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            for request in requests:
                prompt, options = request.args
                answer = options.get("max_tokens", options.get("max_gen_toks", self._max_gen_toks))
                needed = len(self.tokenizer(prompt)["input_ids"]) + answer
                if needed > length:
                    raise ValueError(
                        f"task {request.task_name}: a prompt and its answer take {needed} tokens, and the longest that "
                        f"may be asked is {length}; write maximum_model_length: {needed} or more for this suite, or "
                        "leave the task out"
                    )
            self.tokenized_requests = False
            try:
                return list(super().generate_until(requests, disable_tqdm))
            finally:
                self.tokenized_requests = True

        def _create_payload(self, *arguments: Any, generate: bool = False, **options: Any) -> dict[str, Any]:
            payload: dict[str, Any] = super()._create_payload(*arguments, generate=generate, **options)
            if generate:
                self._asked = payload["max_tokens"]  # one for all requests that are under way
                payload["return_token_ids"] = True
            return payload

        def parse_generations(self, outputs: dict[str, Any], **options: Any) -> list[str]:
            for choice in outputs["choices"]:
                made, prompt = (len(choice[name]) for name in ("token_ids", "prompt_token_ids"))
                check_whole(client.name, choice["finish_reason"], made, self._asked, prompt)
            return list(super().parse_generations(outputs, **options))

    model = TaskModel(
        **client.task_model(),
        tokenizer=str(checkpoint),
        tokenizer_backend="huggingface",
        trust_remote_code=code_is_trusted(),
        tokenized_requests=True,
        max_length=length,
        num_concurrent=8,
        max_retries=1,
        timeout=TASK_SECONDS,
        batch_size=32,
    )
    # As the tokenizer begins a text by itself. A token that it puts behind a text would stand before the answer.
    plain, whole = (model.tokenizer("a b", add_special_tokens=special)["input_ids"] for special in (False, True))
    model.add_bos_token = whole[-len(plain) :] == plain
    return model


def _hash_of_questions(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of what a task asked and of its answers, in lm-eval's order, by lm-eval's own hashes."""
    names = ("doc_id", "doc_hash", "prompt_hash", "target_hash")
    parts = {tuple(sample[name] for name in names) for sample in samples}  # each of several filters has them again
    return hashlib.sha256(canonical_json(sorted(parts)).encode()).hexdigest()


def _per_question(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return {metric: one value per question} of a task's samples; a metric of the whole set has none."""
    if not samples:
        return {}
    # A task may score the same answers in several ways; the first is the one that its metrics are named after.
    first = sorted((s for s in samples if s["filter"] == samples[0]["filter"]), key=lambda sample: sample["doc_id"])
    names = [name for name in first[0]["metrics"] if isinstance(first[0][name], int | float)]
    return {name: [float(sample[name]) for sample in first] for name in names}

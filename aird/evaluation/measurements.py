"""What is asked of a checkpoint: completions, log-probabilities of answers, lm-eval's tasks; and the check before.

A server can load a checkpoint without an error and return garbage. So before
anything is recorded, it and Transformers must agree on the first token's
log-probability for a few prompts.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from aird.evaluation.engines.engine import Client, Completion, check_whole
from aird.evaluation.engines.vllm import NO_PENALTIES
from aird.inference.refusals import degenerate, jailbroken_arditi
from aird.models.loading import code_is_trusted
from aird.prompts.chat import chat_settings, chat_tokens, check_no_thoughts, opens_thought, split_thought
from aird.prompts.sources import SourceError
from aird.settings.suites import Suite
from aird.support.files import canonical_json

TASK_SECONDS = 30 * 24 * 3600  # of a request of lm-eval, which has none without a time-out
GENERATED = 1  # token that a server generates where only the log-probabilities of given ones are asked for
CANDIDATES = 5  # first tokens of each prompt whose log-probabilities are compared


class ParityError(RuntimeError):
    """A server and Transformers disagree about a checkpoint: nothing measured on it would mean anything."""


@torch.no_grad()
def first_token_logprobs(model: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return the log-probabilities of the token after each prompt, each [vocabulary] float64, nats."""
    device = next(model.parameters()).device
    return [
        model(input_ids=torch.tensor([list(prompt)], device=device), use_cache=False, logits_to_keep=1)
        .logits[0, -1]
        .double()
        .log_softmax(-1)
        .cpu()
        for prompt in prompts
    ]


def check_parity(
    client: Client,
    prompts: Sequence[Sequence[int]],
    expected: Sequence[torch.Tensor],
    tolerance: float,
    unpatched: Sequence[torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Compare the server's first tokens with those of Transformers.

    Args:
        client: a server of the checkpoint.
        prompts: token ids.
        expected: Transformers' log-probabilities, one [vocabulary] tensor per prompt, nats.
        tolerance: difference allowed on the likeliest token of either side, nats.
        unpatched: the same as `expected` without the patch, where there is one: a server that leaves it out is found
            even where the patch changes less than the tolerance.

    Returns:
        {"prompts", "largest_difference", "upper_quartile_difference", "same_first_token"} for the record; of a patch
        also "distance_to_patched" and "distance_to_unpatched", root mean squares over the candidates, nats.

    Raises:
        ParityError: they disagree, or the patch is not on what is served.
    """
    completions = client.complete(prompts, 1, logprobs=CANDIDATES)
    differences, same = [], 0
    for completion, reference in zip(completions, expected, strict=True):
        served = completion.first_token_logprobs
        if not served:
            differences.append(float("inf"))  # nothing shows that it is right
            continue
        likeliest = max(served, key=lambda token: served[token])
        own = int(reference.argmax())
        same += likeliest == own
        compared = {likeliest} | ({own} if own in served else set())
        differences.append(max(abs(served[token] - reference[token].item()) for token in compared))
        if own not in served:
            differences[-1] = float("inf")
    broken = any(math.isnan(difference) for difference in differences)
    # Not the largest: rounding to bfloat16 alone moves one prompt in some dozens by half a nat, while
    # what loads wrongly is wrong on most prompts.
    quartile = _upper_quartile(differences)
    if broken or quartile > tolerance:
        raise ParityError(
            f"{client.name} and Transformers disagree on this checkpoint: on a quarter of {len(prompts)} prompts the "
            f"first token's log-probability differs by {math.nan if broken else quartile:.3f} nats or more (allowed: "
            f"{tolerance}). It is loaded wrongly by one of the two, so no rate is reported for it; compare the stored "
            "types with its quantization_config"
        )
    agreement = _agreement(differences, same)
    if unpatched is None:
        return agreement
    near, far = (_distance(completions, side) for side in (expected, unpatched))
    # Rounding alone leaves both distances alike where a patch changes little, the first small where it changes much.
    if 2 * far < near:
        raise ParityError(
            f"the patch is not on what is served: over {len(prompts)} prompts the first tokens' log-probabilities are "
            f"{far:.3f} nats from those of the checkpoint without it, and {near:.3f} from those with it, so no rate is "
            "reported; see the server's log, or serve the patch merged (`serve: merged`)"
        )
    return {**agreement, "distance_to_patched": near, "distance_to_unpatched": far}


def compare_first_tokens(one: Sequence[Completion], other: Sequence[Completion]) -> dict[str, Any]:
    """Compare the first tokens of the same prompts from two servers, with `CANDIDATES` log-probabilities each.

    Returns:
        {"prompts", "largest_difference", "upper_quartile_difference", "same_first_token"}, as of `check_parity`.
    """
    differences, same = [], 0
    for completions in zip(one, other, strict=True):
        first, second = (completion.first_token_logprobs or {} for completion in completions)
        likeliest = {max(side, key=lambda token: side[token]) for side in (first, second)}
        same += len(likeliest) == 1
        known = likeliest <= first.keys() & second.keys()
        differences.append(max(abs(first[token] - second[token]) for token in likeliest) if known else math.inf)
    return _agreement(differences, same)


def _agreement(differences: Sequence[float], same: int) -> dict[str, Any]:
    """Return a record of one difference per prompt; infinite ones, of unknown size, are null in it."""
    largest, quartile = max(differences), _upper_quartile(differences)
    return {
        "prompts": len(differences),
        # Unknown where one side's first token is not among the other's candidates.
        "largest_difference": largest if math.isfinite(largest) else None,
        "upper_quartile_difference": quartile if math.isfinite(quartile) else None,
        "same_first_token": same,
    }


def _upper_quartile(differences: Sequence[float]) -> float:
    return sorted(differences)[math.ceil(0.75 * len(differences)) - 1]


def _distance(completions: Sequence[Completion], reference: Sequence[torch.Tensor]) -> float:
    """Return the root mean square, over prompts and candidates, of served minus reference log-probabilities, nats."""
    differences = [
        value - expected[token].item()
        for completion, expected in zip(completions, reference, strict=True)
        for token, value in (completion.first_token_logprobs or {}).items()
    ]
    return math.sqrt(math.fsum(difference**2 for difference in differences) / len(differences))


def complete_records(
    client: Client,
    tokenizer: Any,
    records: Mapping[str, Sequence[dict[str, Any]]],
    maximum_new_tokens: int,
    system_prompt: str | None = None,
    think: bool = False,
) -> list[dict[str, Any]]:
    """Return one completion record per prompt record, in order; all are asked at once, in the largest batches.

    Of a model that thinks, `completion` is what follows the thought, `thought` is apart, and `unfinished` says whether
    the thought did not end; then there is no completion.

    Args:
        client: the server, or a model in this process.
        tokenizer: the checkpoint's tokenizer.
        records: kind, `harmful` or `harmless`, to prompt records with id and instruction.
        maximum_new_tokens: limit of a completion.
        system_prompt: put in front of every instruction.
        think: let a model that thinks do so.

    Raises:
        ValueError: most completions begin with a thought, and no setting says that the model thinks.
    """
    asked = [(kind, record) for kind, some in records.items() for record in some]
    prompts = [
        chat_tokens(tokenizer, record["instruction"], system_prompt=system_prompt, think=think) for _, record in asked
    ]
    completions = client.complete(prompts, maximum_new_tokens)
    check_no_thoughts(tokenizer, [completion.text for completion in completions])
    opened = think and opens_thought(tokenizer)
    return [
        completion_record(tokenizer, {**_named(record), "kind": kind}, completion, opened)
        for (kind, record), completion in zip(asked, completions, strict=True)
    ]


def completion_record(
    tokenizer: Any, prompt: Mapping[str, Any], completion: Completion, opened: bool
) -> dict[str, Any]:
    """Return the record of one completion.

    Args:
        tokenizer: the checkpoint's tokenizer.
        prompt: id, kind, and the instruction as a judge is to see it.
        completion: what the engine answered.
        opened: whether the prompt opened a thought already.
    """
    return {
        **prompt,
        **_answer(tokenizer, completion.text, opened),
        "tokens": completion.token_count,
        "finish_reason": completion.finish_reason,
    }


def _named(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a completion record keeps of a prompt record: `origin`, where it is known, tells rates apart."""
    return {key: record[key] for key in ("id", "instruction", "origin") if key in record}


def _answer(tokenizer: Any, text: str, opened: bool) -> dict[str, Any]:
    thinking = chat_settings(tokenizer).thinking
    if not thinking:
        return {"completion": text}
    thought, answer, unfinished = split_thought(text, thinking, opened)
    return {"completion": answer, "thought": thought, "unfinished": unfinished}


def reference_answers(completions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the harmless completions that are answers: neither refusals nor degenerate nor unfinished."""
    return [
        record
        for record in completions
        if record["kind"] == "harmless"
        and jailbroken_arditi(record["completion"])
        and not degenerate(record["completion"])  # as no text at all is, behind an unfinished thought
    ]


def check_lengths(
    tokenizer: Any,
    records: Mapping[str, Sequence[dict[str, Any]]],
    suite: Suite,
    longest: int,
    system_prompt: str | None = None,
    likelihoods: bool = False,
) -> None:
    """Check, before anything is started, that every prompt leaves room for a completion.

    Args:
        tokenizer: the checkpoint's.
        records: kind to prompt records.
        suite: how they are asked.
        longest: most tokens of a prompt and its completion together.
        system_prompt: put in front of every conversation.
        likelihoods: the completions of harmless prompts go to `answer_likelihoods`.

    Raises:
        ValueError: one does not; the message names its kind and the length that it needs.
    """

    def longest_prompt(asked: Sequence[dict[str, Any]], think: bool) -> int:
        prompts = (
            chat_tokens(tokenizer, record["instruction"], system_prompt=system_prompt, think=think) for record in asked
        )
        return max(map(len, prompts), default=0)

    for kind, asked in records.items():
        needed = longest_prompt(asked, suite.think) + suite.maximum_new_tokens
        if likelihoods and kind == "harmless":
            needed = max(needed, longest_prompt(asked, think=False) + suite.maximum_new_tokens + GENERATED)
        if needed > longest:
            raise ValueError(
                f"{kind} prompts: one and its completion take up to {needed} tokens, and the longest that may be asked "
                f"is {longest}; write --length {needed} or more (in a configuration, maximum_model_length), or let "
                "completions be shorter"
            )


def check_answer_lengths(
    tokenizer: Any, answers: Sequence[dict[str, Any]], longest: int, system_prompt: str | None = None
) -> None:
    """Check, before anything is started, that `answer_likelihoods` can be asked for reference answers.

    Args:
        tokenizer, answers, system_prompt: as of `answer_likelihoods`.
        longest: most tokens of a prompt and its completion together.

    Raises:
        ValueError: one is too long; the message names the length that it needs.
    """
    whole = (prompt + answer for prompt, answer in _answered(tokenizer, answers, system_prompt))
    needed = max(map(len, whole), default=0) + GENERATED
    if needed > longest:
        raise ValueError(
            f"reference answers: a prompt, its answer and a token that a server adds take up to {needed} tokens, and "
            f"the longest that may be asked is {longest}; write --length {needed} or more (in a configuration, "
            "maximum_model_length), or let the original answer with fewer tokens"
        )


def answer_likelihoods(
    client: Client, tokenizer: Any, answers: Sequence[dict[str, Any]], system_prompt: str | None = None
) -> list[dict[str, Any]]:
    """Return, per reference answer, the summed negative log-likelihood (nats) and number of its tokens.

    The perplexity of a checkpoint is exp(sum of these / number of tokens), over the answer's
    tokens only, given the templated instruction; of a model that thinks, behind a closed empty thought.
    """
    asked = _answered(tokenizer, answers, system_prompt)
    whole = [prompt + answer for prompt, answer in asked]
    results = []
    for record, (prompt, _), logprobs in zip(answers, asked, client.token_logprobs(whole), strict=True):
        own = [-value for value in logprobs[len(prompt) :] if value is not None]
        results.append({"id": record["id"], "negative_log_likelihood": sum(own), "tokens": len(own)})
    return results


def _answered(
    tokenizer: Any, answers: Sequence[dict[str, Any]], system_prompt: str | None
) -> list[tuple[list[int], list[int]]]:
    """Return the token ids of each templated instruction, and those of the answer behind it."""
    prompts = [chat_tokens(tokenizer, record["instruction"], system_prompt=system_prompt) for record in answers]
    texts = [list(tokenizer(record["completion"], add_special_tokens=False)["input_ids"]) for record in answers]
    return list(zip(prompts, texts, strict=True))


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
    """Run a suite's lm-eval tasks against a server.

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
    import lm_eval
    from lm_eval.tasks import TaskManager

    report = lm_eval.simple_evaluate(
        model=_task_model(client, checkpoint, length),
        tasks=list(loaded),
        task_manager=TaskManager(include_defaults=False),  # else it would read the files of all its tasks again
        limit=suite.task_limit,
        gen_kwargs=dict(NO_PENALTIES),  # of a server that was not started here, too
        bootstrap_iters=0,
        log_samples=True,
    )
    results, questions, data = {}, {}, {}
    # A group or tag stands for its tasks; those that were named come first, in their order.
    asked = report["n-samples"]
    for task in [*(name for name in suite.tasks if name in asked), *sorted(asked.keys() - set(suite.tasks))]:
        metrics = report["results"][task]
        results[task] = {
            name.replace(",none", ""): float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        results[task]["n"] = float(report["n-samples"][task]["effective"])
        samples = report["samples"].get(task, [])
        questions[task] = _per_question(samples)
        data[task] = {"version": report["versions"][task], "sha256": _hash_of_questions(samples)}
    return results, questions, data


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


def _hash_of_questions(samples: Sequence[dict[str, Any]]) -> str:
    """Return the SHA-256 of what a task asked and of its answers, in lm-eval's order, by lm-eval's own hashes."""
    names = ("doc_id", "doc_hash", "prompt_hash", "target_hash")
    parts = {tuple(sample[name] for name in names) for sample in samples}  # each of several filters has them again
    return hashlib.sha256(canonical_json(sorted(parts)).encode()).hexdigest()


def _per_question(samples: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return {metric: one value per question} of a task's samples; a metric of the whole set has none."""
    if not samples:
        return {}
    # A task may score the same answers in several ways; the first is the one that its metrics are named after.
    first = sorted((s for s in samples if s["filter"] == samples[0]["filter"]), key=lambda sample: sample["doc_id"])
    names = [name for name in first[0]["metrics"] if isinstance(first[0][name], int | float)]
    return {name: [float(sample[name]) for sample in first] for name in names}

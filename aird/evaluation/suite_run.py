"""The evaluation's node: ask one checkpoint everything that a suite measures, of whichever engine.

`evaluate_suite` is what the rule's script and `aird evaluate` both call; `measurements` says what is asked.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from aird.evaluation.attacks import attacked_records, check_attack_lengths
from aird.evaluation.decoding import CheckedClient
from aird.evaluation.engines.engine import AdapterRefused, Client, Completion, Engine, ServerSettings
from aird.evaluation.engines.transformers import Transformers
from aird.evaluation.measurements import (
    CANDIDATES,
    ParityError,
    answer_likelihoods,
    check_answer_lengths,
    check_lengths,
    check_parity,
    compare_first_tokens,
    complete_records,
    first_token_logprobs,
    load_tasks,
    reference_answers,
    run_tasks,
)
from aird.models.dense import computed_dtype, is_weight_only, rounds_activations, write_dense_copy
from aird.models.loading import code_is_trusted, load_model, load_tokenizer
from aird.patching.adapters import load_adapter, merge
from aird.patching.system_prompt import read_patch
from aird.prompts.chat import chat_tokens
from aird.prompts.sets import CLASSES
from aird.settings.base import PLAIN
from aird.settings.suites import ADAPTER, AS_STORED, BOTH, DENSE_COPY, GGUF_FILE, MERGED, SYSTEM_PROMPT, Serving, Suite
from aird.support.files import scratch_folder
from aird.support.gpus import describe_gpus, own_gpus

logger = logging.getLogger(__name__)

PROMPT = ("id", "kind", "instruction")  # what two completion records of one prompt share
QUANTISED_CACHE_ALLOWANCE = 4.0  # times the tolerance of the check, where only the engine's cache is quantised


@dataclass(frozen=True)
class Served:
    """A checkpoint that an engine has ready, and that Transformers agrees with.

    Attributes:
        client: asks it.
        folder: the checkpoint that the engine runs, with its tokenizer.
        served_as: the form of the patch: `adapter`, beside the base; `merged`; `system_prompt`; `plain`, none.
        weights: what the engine computes with: AS_STORED, DENSE_COPY or GGUF_FILE; None of a running server.
        parity: the record of the check; None where the engine cannot be checked.
    """

    client: Client
    folder: Path
    served_as: str
    weights: str | None
    parity: dict[str, Any] | None


def evaluate_suite(
    checkpoint: Path,
    patch: Path | None,
    records: Mapping[str, Sequence[dict[str, Any]]],
    suite: Suite,
    serving: Serving,
    engine: Engine,
    reference: Sequence[dict[str, Any]] | None,
    seed: int,
    scratch: Path,
    log: Path,
    attack_texts: Mapping[str, str] | None = None,
    key_value_cache_dtype: str | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Have an engine run a checkpoint, check that it does so rightly, and ask everything.

    A patched checkpoint runs in the form in which it ships, the adapter beside its base, or as `suite.serve` says.

    Args:
        checkpoint: a checkpoint folder.
        patch: a patch's folder: an adapter to put on it, or a system prompt.
        records: kind, `harmful` or `harmless`, to prompt records.
        suite: what to ask.
        serving: how the engine is started, and how far it may differ from Transformers.
        engine: who answers.
        reference: completions of the original, whose harmless answers give the perplexity; None
            takes this checkpoint's own.
        seed: recorded, and the engine's own.
        scratch: a folder that may be made and removed, on a disk with room for a copy of the checkpoint.
        log: receives what a server prints.
        attack_texts: of `aird.prompts.attack_texts.read_attack_texts`, where the suite has attacks.
        key_value_cache_dtype: type of the engine's cached keys and values; None is the model's.

    Returns:
        Completion records, and what is measured besides: answers, tasks, questions. Both say how they were made; what
        cannot be asked for, as tasks behind a system prompt, is in neither, and `engine.not_measured` names it. Where
        the suite asks for both forms, a completion record has `merged`, what the merged checkpoint completed instead,
        and the rest has `merged` too: its parity, and how far the first tokens of the prompts differ.

    Raises:
        ParityError: the engine and Transformers disagree about this checkpoint.
        RuntimeError: the engine did not start, failed or ended; or it does not take the adapter, and both forms are
            asked for.
        ValueError: the suite asks for both forms or the merged one, and the engine cannot serve them; lm-eval knows no
            such task; a prompt is too long; or the engine cannot be started so.
        SourceError: the data of a task cannot be loaded.
    """
    longest = suite.maximum_model_length or serving.maximum_model_length
    settings = ServerSettings(
        maximum_model_length=longest,
        key_value_cache_gib=serving.key_value_cache_gib,
        seed=seed,
        trust_remote_code=code_is_trusted(),
        gpus=own_gpus(),
        gpu_memory_utilization=serving.gpu_memory_utilization,
        key_value_cache_dtype=key_value_cache_dtype,
        extra_arguments=serving.server_arguments(),
    )
    engine.check(checkpoint, settings)
    adapter, system_prompt = read_patch(patch)
    if adapter is not None and suite.serve != ADAPTER and engine.weights == GGUF_FILE:
        raise ValueError(
            f"{engine.describe()} serves the GGUF file, and a patch can only be put beside that; write serve: adapter, "
            f"or engine: vllm, which serves the decoded weights (found: serve: {suite.serve})"
        )
    can = engine.able(checkpoint)
    measured = {"perplexity": can.prompt_logprobs, "tasks": can.tasks or not suite.tasks}
    not_measured = [what for what, able in measured.items() if not able]
    if not_measured:
        logger.warning(
            "%s cannot be asked for %s, which is not measured", engine.describe(), " and ".join(not_measured)
        )
    asks_tasks = can.tasks and system_prompt is None
    if can.tasks and suite.tasks and not asks_tasks:
        not_measured.append("tasks")
        logger.warning("lm-eval's tasks are asked without a chat and so without a system prompt: they are not measured")
    if not can.first_token_logprobs and not isinstance(engine, Transformers):  # which others are checked against
        logger.warning(
            "%s tells no log-probabilities of first tokens, so nothing shows that it serves %s",
            engine.describe(),
            checkpoint,
        )
    both = adapter is not None and suite.serve == BOTH
    if both and not can.adapters:
        raise ValueError(
            f"{engine.describe()} takes no adapter, so a patch is served merged only; leave out serve: both"
        )
    # Before the start: a wrong name, or data that cannot be fetched, would lose all completions.
    loaded = load_tasks(suite) if asks_tasks else []
    tokenizer = load_tokenizer(checkpoint)

    def tokens(asked: Sequence[dict[str, Any]]) -> list[list[int]]:
        return [
            chat_tokens(tokenizer, record["instruction"], system_prompt=system_prompt, think=suite.think)
            for record in asked
        ]

    chosen = {kind: records[kind] for kind in CLASSES}
    own = can.prompt_logprobs and reference is None
    check_lengths(tokenizer, chosen, suite, longest, system_prompt, likelihoods=own)
    if can.prompt_logprobs and reference is not None:
        known_answers = reference_answers(reference)[: suite.perplexity_answers]
        check_answer_lengths(tokenizer, known_answers, longest, system_prompt)
    texts = attack_texts or {}
    check_attack_lengths(tokenizer, records["harmful"], suite, texts, seed, longest, system_prompt)
    probes = tokens(_probed(records, serving.parity_prompts))
    starts = engine, scratch, log, can.first_token_logprobs
    serve = partial(_serve, checkpoint, adapter, probes, settings, serving.parity_tolerance, *starts)

    def complete(client: Client) -> list[dict[str, Any]]:
        return complete_records(client, tokenizer, chosen, suite.maximum_new_tokens, system_prompt, suite.think)

    def first_tokens(client: Client) -> list[Completion]:
        asked = [record for some in chosen.values() for record in some]
        return client.complete(tokens(asked), 1, logprobs=CANDIDATES) if can.first_token_logprobs else []

    with contextlib.ExitStack() as stack:
        try:
            served = stack.enter_context(serve(merged=suite.serve == MERGED))
        except AdapterRefused as error:
            if both:
                raise
            logger.warning("%s\nThe patch is served merged.", error)
            served = stack.enter_context(serve(merged=True))
        client = served.client
        beside = first_tokens(client) if both else []
        # First: only lm-eval finds that a task's prompt is too long, which would lose what was completed before.
        tasks, questions, data = run_tasks(client, served.folder, suite, loaded, longest)
        completions = complete(client)
        harmful = [record for record in completions if record["kind"] == "harmful"]
        attacked = attacked_records(client, tokenizer, records["harmful"], harmful, suite, texts, seed, system_prompt)
        answers = reference_answers(completions if reference is None else reference)[: suite.perplexity_answers]
        likelihoods = answer_likelihoods(client, tokenizer, answers, system_prompt) if can.prompt_logprobs else []
        name, versions = client.name, client.versions()
    form, weights, parity = served.served_as, served.weights, served.parity
    utility = {"answers": likelihoods, "tasks": tasks, "questions": questions, "task_data": data}
    if both:
        # A model in this process would stay in memory beside the merged one; with an adapter it refers to itself.
        del client, served
        gc.collect()
        with serve(merged=True) as merged:
            first = compare_first_tokens(beside, first_tokens(merged.client)) if beside else None
            utility["merged"] = {"parity": merged.parity, "first_tokens": first}
            completions = [
                {**completion, "merged": {name: value for name, value in other.items() if name not in PROMPT}}
                for completion, other in zip(completions, complete(merged.client), strict=True)
            ]
    provenance = {
        "sampling": {"temperature": 0.0, "max_tokens": suite.maximum_new_tokens, "seed": seed},
        "versions": {**versions, **_installed("transformers", "lm_eval")},
        "served_as": SYSTEM_PROMPT if system_prompt is not None else form,
        "weights": weights,
        "parity": parity,
        "engine": {
            "name": name,
            "prompts": "token ids" if can.token_ids else "text, read by the server's tokenizer",
            "not_measured": not_measured,
            # They decide by which kernels a format runs. Other engines run on the processor, or nobody knows where.
            **({"gpus": gpus} if engine.weights == AS_STORED and (gpus := describe_gpus()) else {}),
            **({} if can.unpenalised else {"repetition_penalty": "the server's own"}),
        },
    }
    return [{**completion, **provenance} for completion in [*completions, *attacked]], {**utility, **provenance}


def _installed(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextlib.contextmanager
def _serve(
    checkpoint: Path,
    adapter: Path | None,
    probes: Sequence[Sequence[int]],
    settings: ServerSettings,
    tolerance: float,
    engine: Engine,
    scratch: Path,
    log: Path,
    checked: bool,
    *,
    merged: bool,
) -> Iterator[Served]:
    """Have an engine run a checkpoint, its adapter beside it or merged; if `checked`, compare it with Transformers."""
    with scratch_folder(scratch) as folder:
        served, left, dense = prepare_checkpoint(checkpoint, adapter, engine, folder, merged)
        expected, unpatched = None, None
        if checked:
            # Before the start: the reference's memory is then the server's.
            expected, unpatched = _reference_logprobs(checkpoint, adapter, served if left is None else None, probes)
        with engine.serve(served, settings, log, left) as serving:
            client: Client = serving
            if engine.able(checkpoint).token_ids:
                client = CheckedClient(serving, load_tokenizer(checkpoint), str(checkpoint))
            dtype = settings.key_value_cache_dtype
            parity = None if expected is None else _parity(client, probes, expected, unpatched, tolerance, dtype)
            form = PLAIN if adapter is None else MERGED if left is None else ADAPTER
            yield Served(client, served, form, DENSE_COPY if dense else engine.weights, parity)


def prepare_checkpoint(
    checkpoint: Path, adapter: Path | None, engine: Engine, scratch: Path, merged: bool = False
) -> tuple[Path, Path | None, bool]:
    """Return the folder for an engine to run, the adapter that it puts on it itself, and whether it is a dense copy.

    The folder is the checkpoint's own, or a copy in `scratch`: with the adapter merged, or with dense weights. A dense
    copy computes the same, but where the format rounds activations (LLM.int8): there they keep their full precision.

    Args:
        checkpoint: a checkpoint folder.
        adapter: a rank-1 adapter; None runs the checkpoint plain.
        engine: who runs it.
        scratch: an existing, empty folder.
        merged: merge the adapter, even if the engine would take it.
    """
    served, dense = checkpoint, False
    updates = [] if adapter is None else load_adapter(adapter)
    experts = any(update.up.ndim == 3 for update in updates)
    if adapter is not None and (merged or not _takes(engine, checkpoint, experts)):
        if experts and is_weight_only(checkpoint):  # a checkpoint holds no experts of both kinds
            served, dense = _dense_copy(checkpoint, scratch), True
        base, served = served, scratch / "merged"
        served.mkdir()
        merge(base, updates, served)
        adapter = None
    if engine.needs_dense_copy(served):
        served, dense = _dense_copy(served, scratch), True
        logger.info("serving a dense copy of the quantised weights: the engine cannot read them here")
    return served, adapter, dense


def _dense_copy(checkpoint: Path, scratch: Path) -> Path:
    copy = scratch / "dense"
    copy.mkdir()
    write_dense_copy(checkpoint, copy, computed_dtype(checkpoint))
    return copy


def _takes(engine: Engine, checkpoint: Path, experts: bool) -> bool:
    """Return whether an engine puts an adapter on a checkpoint itself, one of experts or another."""
    can = engine.able(checkpoint)  # a running server is asked to find out
    return can.expert_adapters if experts else can.adapters


def _probed(records: Mapping[str, Sequence[dict[str, Any]]], count: int) -> list[dict[str, Any]]:
    """Return the prompts of the check, half harmful, half harmless: a broken checkpoint may look right on one kind."""
    half = -(-count // 2)
    return [*records["harmful"][:half], *records["harmless"][:half]][:count]


def _reference_logprobs(
    checkpoint: Path, adapter: Path | None, merged: Path | None, probes: Sequence[Sequence[int]]
) -> tuple[list[Any], list[Any] | None]:
    """Return Transformers' log-probabilities of the first tokens, by which an engine is checked, and those unpatched.

    Transformers runs base + adapter, a server perhaps the merged checkpoint: agreement checks the merge as well. But a
    module that rounds its inputs does so before an adapter's base matrix, and no more once it is merged.

    Args:
        checkpoint: the base.
        adapter: what is put on it; None leaves it plain, and there is nothing unpatched to tell apart.
        merged: what the engine runs, if the adapter is merged there.
        probes: token ids of the prompts.
    """
    if adapter is not None and merged is not None and rounds_activations(checkpoint):
        expected, unpatched = first_token_logprobs(load_model(merged), probes), None
    else:
        model = load_model(checkpoint, adapter)
        expected, unpatched = first_token_logprobs(model, probes), None
        if adapter is not None:
            with model.disable_adapter():
                unpatched = first_token_logprobs(model, probes)
        del model
    if torch.cuda.is_available():
        # PyTorch keeps a freed model's memory, which the server would miss.
        gc.collect()
        torch.cuda.empty_cache()
    return expected, unpatched


def _parity(
    client: Client,
    probes: Sequence[Sequence[int]],
    expected: Sequence[Any],
    unpatched: Sequence[Any] | None,
    tolerance: float,
    dtype: str | None,
) -> dict[str, Any]:
    """Check an engine against Transformers, whose key/value cache is never quantised.

    A quantised one moves log-probabilities by itself, so more is allowed then, though far less than what a checkpoint
    that is loaded wrongly shows; the record says so.
    """
    if dtype is None:
        return check_parity(client, probes, expected, tolerance, unpatched)
    allowed = QUANTISED_CACHE_ALLOWANCE * tolerance
    try:
        record = check_parity(client, probes, expected, allowed, unpatched)
    except ParityError as error:
        raise ParityError(
            f"{error}; or keys and values in {dtype} alone do this, then raise parity_tolerance"
        ) from error
    return {**record, "key_value_cache_dtype": dtype, "tolerance": allowed}

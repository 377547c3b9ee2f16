"""The evaluation's node: ask one checkpoint everything that a suite measures, of whichever engine.

`evaluate_suite` is what the rule's script and `aird evaluate` both call; `measurements` says what is asked.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from aird.evaluation.engines.engine import Client, Engine, ServerSettings
from aird.evaluation.measurements import (
    ParityError,
    answer_likelihoods,
    check_parity,
    complete_records,
    first_token_logprobs,
    reference_answers,
    run_tasks,
)
from aird.models.dense import rounds_activations, write_dense_copy
from aird.models.loading import code_is_trusted, load_model, load_tokenizer
from aird.patching.adapters import load_adapter, merge
from aird.patching.system_prompt import read_patch
from aird.prompts.chat import chat_tokens
from aird.settings.suites import Serving, Suite
from aird.support.files import scratch_folder
from aird.support.gpus import own_gpus

logger = logging.getLogger(__name__)

KINDS = ("harmful", "harmless")
QUANTISED_CACHE_ALLOWANCE = 4.0  # times the tolerance of the check, where only the engine's cache is quantised


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
    key_value_cache_dtype: str | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Have an engine run a checkpoint, check that it does so rightly, and ask everything.

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
        key_value_cache_dtype: type of the engine's cached keys and values; None is the model's.

    Returns:
        Completion records, and what is measured besides: answers, tasks, questions. Both say how they were made.

    Raises:
        ParityError: the engine and Transformers disagree about this checkpoint.
        RuntimeError: the engine did not start, failed or ended.
        ValueError: the suite has tasks, and the engine cannot be asked them; the engine cannot be started so.
    """
    can = engine.abilities
    if suite.tasks and not can.tasks:
        raise ValueError(f"lm-eval's tasks need a server, not {engine.describe()}: name one, or leave the tasks out")
    tokenizer = load_tokenizer(checkpoint)
    adapter, system_prompt = read_patch(patch)
    probes = [
        chat_tokens(tokenizer, record["instruction"], system_prompt=system_prompt, think=suite.think)
        for record in _probed(records, serving.parity_prompts)
    ]
    settings = ServerSettings(
        maximum_model_length=serving.maximum_model_length,
        key_value_cache_gib=serving.key_value_cache_gib,
        seed=seed,
        trust_remote_code=code_is_trusted(),
        gpus=own_gpus(),
        gpu_memory_utilization=serving.gpu_memory_utilization,
        key_value_cache_dtype=key_value_cache_dtype,
        extra_arguments=serving.server_arguments(),
    )
    engine.check(checkpoint, settings)
    with scratch_folder(scratch) as folder:
        served, left = prepare_checkpoint(checkpoint, adapter, engine, folder)
        # Before the start: the reference's memory is then the server's.
        expected = _reference_logprobs(checkpoint, adapter, served, probes) if can.first_token_logprobs else None
        with engine.serve(served, settings, log, left) as client:
            parity = None if expected is None else _parity(client, probes, expected, serving, key_value_cache_dtype)
            chosen = {kind: records[kind] for kind in KINDS}
            completions = complete_records(
                client, tokenizer, chosen, suite.maximum_new_tokens, system_prompt, suite.think
            )
            answers = reference_answers(completions if reference is None else reference)[: suite.perplexity_answers]
            likelihoods = answer_likelihoods(client, tokenizer, answers, system_prompt) if can.prompt_logprobs else []
            tasks, questions = run_tasks(client, served, suite, serving.maximum_model_length)
            versions = client.versions()
    provenance = {
        "sampling": {"temperature": 0.0, "max_tokens": suite.maximum_new_tokens, "seed": seed},
        "versions": {**versions, "transformers": version("transformers"), "lm_eval": version("lm_eval")},
        "parity": parity,
    }
    utility = {"answers": likelihoods, "tasks": tasks, "questions": questions}
    return [{**completion, **provenance} for completion in completions], {**utility, **provenance}


def prepare_checkpoint(
    checkpoint: Path, adapter: Path | None, engine: Engine, scratch: Path
) -> tuple[Path, Path | None]:
    """Return the folder for an engine to run, and the adapter that it is to put on it itself.

    The folder is the checkpoint's own, or a copy in `scratch` that computes the same: with the adapter merged, or
    with dense weights.

    Args:
        checkpoint: a checkpoint folder.
        adapter: a rank-1 adapter; None runs the checkpoint plain.
        engine: who runs it.
        scratch: an existing, empty folder.
    """
    served = checkpoint
    if adapter is not None and not engine.abilities.adapters:
        served = scratch / "merged"
        served.mkdir()
        merge(checkpoint, load_adapter(adapter), served)
        adapter = None
    if engine.needs_dense_copy(served):
        dense = scratch / "dense"
        dense.mkdir()
        write_dense_copy(served, dense)
        logger.info("serving a dense copy of the quantised weights: the engine cannot read them here")
        served = dense
    return served, adapter


def _probed(records: Mapping[str, Sequence[dict[str, Any]]], count: int) -> list[dict[str, Any]]:
    """Return the prompts of the check, half harmful, half harmless: a broken checkpoint may look right on one kind."""
    half = -(-count // 2)
    return [*records["harmful"][:half], *records["harmless"][:half]][:count]


def _reference_logprobs(
    checkpoint: Path, adapter: Path | None, served: Path, probes: Sequence[Sequence[int]]
) -> list[Any]:
    """Return Transformers' log-probabilities of the first tokens, by which an engine is checked.

    Transformers runs base + adapter, a server the merged checkpoint: agreement checks the merge as well. But a module
    that rounds its inputs does so before an adapter's base matrix, and no more once it is merged.
    """
    merged = adapter is not None and rounds_activations(checkpoint)
    logprobs = first_token_logprobs(load_model(served) if merged else load_model(checkpoint, adapter), probes)
    if torch.cuda.is_available():
        # PyTorch keeps a freed model's memory, which the server would miss.
        gc.collect()
        torch.cuda.empty_cache()
    return logprobs


def _parity(
    client: Client, probes: Sequence[Sequence[int]], expected: Sequence[Any], serving: Serving, dtype: str | None
) -> dict[str, Any]:
    """Check an engine against Transformers, whose key/value cache is never quantised.

    A quantised one moves log-probabilities by itself, so more is allowed then, though far less than what a checkpoint
    that is loaded wrongly shows; the record says so.
    """
    if dtype is None:
        return check_parity(client, probes, expected, serving.parity_tolerance)
    tolerance = QUANTISED_CACHE_ALLOWANCE * serving.parity_tolerance
    try:
        record = check_parity(client, probes, expected, tolerance)
    except ParityError as error:
        raise ParityError(
            f"{error}; or keys and values in {dtype} alone do this, then raise parity_tolerance"
        ) from error
    return {**record, "key_value_cache_dtype": dtype, "tolerance": tolerance}

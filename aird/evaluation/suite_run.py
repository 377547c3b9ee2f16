"""Ask one checkpoint everything that a suite measures: served by vLLM, or by Transformers on the spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aird.evaluation.measurements import (
    answer_likelihoods,
    check_parity,
    complete_records,
    first_token_logprobs,
    prepare_checkpoint,
    reference_answers,
    run_tasks,
)
from aird.evaluation.server_client import Client, Completer
from aird.evaluation.serving import ServerSettings, detect_accelerator, serve
from aird.evaluation.transformers_client import TransformersClient
from aird.models.dense import rounds_activations
from aird.models.loading import code_is_trusted, load_model, load_tokenizer
from aird.patching.system_prompt import read_patch
from aird.prompts.chat import chat_tokens
from aird.settings.suites import Serving, Suite
from aird.support.files import scratch_folder

KINDS = ("harmful", "harmless")
Records = Mapping[str, Sequence[dict[str, Any]]]  # kind -> prompt records
Measured = tuple[list[dict[str, Any]], dict[str, Any]]  # completion records, and what is measured besides


def run_served(
    checkpoint: Path,
    adapter: Path | None,
    records: Records,
    suite: Suite,
    serving: Serving,
    python: Path | None,
    reference: Sequence[dict[str, Any]] | None,
    seed: int,
    scratch: Path,
    log: Path,
) -> Measured:
    """Serve a checkpoint with vLLM, check that it is served rightly, and ask everything.

    Args:
        checkpoint: a checkpoint folder.
        adapter: a patch's folder: an adapter to put on it, or a system prompt.
        records: prompt records of both kinds.
        suite: what to ask.
        serving: how to serve; its `url` names a running server.
        python: Python of the environment with vLLM; None means this one.
        reference: completions of the original, whose harmless answers give the perplexity; None
            takes this checkpoint's own.
        seed: recorded, and vLLM's own.
        scratch: a folder that may be made and removed, on a disk with room for a copy of the checkpoint.
        log: receives what the server prints.

    Raises:
        ParityError: vLLM and Transformers disagree about this checkpoint.
        RuntimeError: the server did not start, failed or ended.
    """
    tokenizer = load_tokenizer(checkpoint)
    # Half harmful, half harmless: a broken checkpoint may look right on one kind.
    half = -(-serving.parity_prompts // 2)
    chosen = [*records["harmful"][:half], *records["harmless"][:half]][: serving.parity_prompts]
    adapter, system_prompt = read_patch(adapter)
    probes = [chat_tokens(tokenizer, record["instruction"], system_prompt=system_prompt) for record in chosen]
    with scratch_folder(scratch) as folder:
        on_cpu = serving.url is None and detect_accelerator() == "cpu"
        served = prepare_checkpoint(checkpoint, adapter, on_cpu, folder)
        # Transformers runs base + adapter, the server the merged checkpoint: agreement checks the merge as well.
        # But a module that rounds its inputs does so before an adapter's base matrix, and no more once it is merged.
        merged = adapter is not None and rounds_activations(checkpoint)
        reference_model = load_model(served) if merged else load_model(checkpoint, adapter)
        expected = first_token_logprobs(reference_model, probes)
        del reference_model  # its memory is the server's
        settings = ServerSettings(
            maximum_model_length=serving.maximum_model_length,
            key_value_cache_gib=serving.key_value_cache_gib,
            seed=seed,
            trust_remote_code=code_is_trusted(),
        )
        with serve(served, python, settings, log, serving.url) as client:
            parity = check_parity(client, probes, expected, serving.parity_tolerance)
            completions, utility = _ask(client, tokenizer, records, suite, reference, system_prompt)
            utility["tasks"], utility["questions"] = _tasks(client, served, suite, serving)
            versions = {"vllm": client.version()}
    return _with_provenance(completions, utility, suite, seed, parity, versions)


def run_with_transformers(
    checkpoint: Path,
    adapter: Path | None,
    records: Records,
    suite: Suite,
    reference: Sequence[dict[str, Any]] | None,
    seed: int,
) -> Measured:
    """Ask everything but lm-eval's tasks, without a server; arguments as for `run_served`.

    Raises:
        ValueError: the suite has tasks, which need vLLM.
    """
    if suite.tasks:
        raise ValueError("lm-eval's tasks need vLLM: name its Python or a server's address, or leave the tasks out")
    tokenizer = load_tokenizer(checkpoint)
    adapter, system_prompt = read_patch(adapter)
    client = TransformersClient(load_model(checkpoint, adapter), tokenizer)
    completions, utility = _ask(client, tokenizer, records, suite, reference, system_prompt)
    return _with_provenance(completions, {**utility, "tasks": {}, "questions": {}}, suite, seed, None, {})


def _ask(
    client: Completer,
    tokenizer: Any,
    records: Records,
    suite: Suite,
    reference: Sequence[dict[str, Any]] | None,
    system_prompt: str | None,
) -> Measured:
    chosen = {kind: records[kind] for kind in KINDS}
    completions = complete_records(client, tokenizer, chosen, suite.maximum_new_tokens, system_prompt)
    answers = reference_answers(completions if reference is None else reference)[: suite.perplexity_answers]
    return completions, {"answers": answer_likelihoods(client, tokenizer, answers, system_prompt)}


def _tasks(client: Client, served: Path, suite: Suite, serving: Serving) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = Path(suite.task_folder) if suite.task_folder else None
    return run_tasks(client, served, suite.tasks, folder, suite.task_limit, serving.maximum_model_length)


def _with_provenance(
    completions: list[dict[str, Any]],
    utility: dict[str, Any],
    suite: Suite,
    seed: int,
    parity: dict[str, Any] | None,
    versions: dict[str, str],
) -> Measured:
    provenance = {
        "sampling": {"temperature": 0.0, "max_tokens": suite.maximum_new_tokens, "seed": seed},
        "versions": {**versions, "transformers": version("transformers"), "lm_eval": version("lm_eval")},
        "parity": parity,
    }
    return [{**completion, **provenance} for completion in completions], {**utility, **provenance}

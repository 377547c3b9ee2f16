"""The evaluation's node: ask one checkpoint everything that a suite measures, of whichever engine.

`evaluate_suite` is what the rule's script and `aird evaluate` both call; `questions` says what is asked.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

from aird.evaluation.decoding import CheckedClient
from aird.evaluation.engine import Abilities, AdapterRefused, Client, Completion, Engine, Keeping, ServerSettings
from aird.evaluation.first_tokens import first_token_records, first_tokens
from aird.evaluation.parity import (
    CANDIDATES,
    Agreement,
    check_served,
    compare_first_tokens,
    expected_logprobs,
)
from aird.evaluation.questions import (
    AnswerLikelihood,
    Asked,
    CompletionRecord,
    Questions,
    answer_likelihoods,
    check_lengths,
    complete,
    complete_attacked,
    suite_questions,
)
from aird.evaluation.tasks import load_tasks, run_tasks
from aird.models.dense import computed_dtype, is_weight_only, write_dense_copy
from aird.models.gguf_file import served_gguf
from aird.models.loading import code_is_trusted, load_tokenizer
from aird.patching.adapters import load_adapter, merge
from aird.patching.system_prompt import read_patch
from aird.settings.base import PLAIN
from aird.settings.suites import ADAPTER, BOTH, MERGED, SYSTEM_PROMPT, Serving
from aird.settings.weights import WeightForm
from aird.support.files import scratch_folder
from aird.support.gpus import describe_gpus, own_gpus

logger = logging.getLogger(__name__)

PROMPT = ("id", "kind", "instruction")  # what two completion records of one prompt share


@dataclass(frozen=True)
class Deployment:
    """A checkpoint, patched or not, and who runs it.

    Attributes:
        checkpoint: a checkpoint folder.
        patch: a patch's folder: an adapter to put on it, or a system prompt; None measures it plain.
        engine: who answers.
        serving: how long a prompt may be, and how far the engine may differ from Transformers.
        key_value_cache_dtype: type of the engine's cached keys and values; None is the model's.
    """

    checkpoint: Path
    patch: Path | None
    engine: Engine
    serving: Serving
    key_value_cache_dtype: str | None = None


@dataclass(frozen=True)
class Places:
    """Where an evaluation may write.

    Attributes:
        scratch: a folder that may be made and removed, on a disk with room for a copy of the checkpoint.
        log: receives what a server prints.
        keeping: keeps answers as they come; None keeps none.
    """

    scratch: Path
    log: Path
    keeping: Keeping | None = None


class Provenance(TypedDict):
    """How completions and utility were made: a part of both.

    Attributes:
        sampling: temperature, limit of a completion in tokens, seed.
        versions: of programs.
        served_as: the form of the patch: `adapter`, beside the base; `merged`; `system_prompt`; `plain`, none.
        weights: what the engine computed with; None of a running server.
        parity: how far the engine agrees with Transformers; None where it cannot be checked.
        engine: its name, how it takes prompts, what cannot be measured with it, and its GPUs where they matter.
    """

    sampling: dict[str, float]
    versions: dict[str, str]
    served_as: str
    weights: WeightForm | None
    parity: Agreement | None
    engine: dict[str, object]


class EvaluatedCompletion(CompletionRecord, Provenance):
    """A completion and how it was made."""


class Utility(Provenance, total=False):
    """What is measured besides completions; `tasks`, `questions` and `task_data` are those of `run_tasks`.

    Attributes:
        answers: the likelihoods of reference answers.
        merged: where the suite asks for both forms: parity of the merged checkpoint, and how far the first tokens of
            all prompts differ between the forms.
    """

    answers: list[AnswerLikelihood]
    tasks: dict[str, dict[str, float]]
    questions: dict[str, dict[str, list[float]]]
    task_data: dict[str, dict[str, Any]]
    merged: dict[str, Agreement | None]


@dataclass(frozen=True)
class Served:
    """A checkpoint that an engine has ready, and that Transformers agrees with.

    Attributes:
        client: asks it.
        folder: the checkpoint that the engine runs, with its tokenizer.
        form, weights, parity: `served_as`, `weights` and `parity` of the provenance.
    """

    client: Client
    folder: Path
    form: str
    weights: WeightForm | None
    parity: Agreement | None


@dataclass(frozen=True)
class _Run:
    """An evaluation that is checked, so that an engine can be started for it.

    Attributes:
        asked, deployment, places: as of `evaluate_suite`.
        questions: what is asked besides tasks.
        tasks: lm-eval's tasks with their data.
        not_measured: what the suite asks for and the engine cannot be asked.
        adapter, system_prompt: the patch.
        settings: how a server is started.
        can: what the engine can be asked.
    """

    asked: Asked
    deployment: Deployment
    places: Places
    questions: Questions
    tasks: list[Any]
    not_measured: list[str]
    adapter: Path | None
    system_prompt: str | None
    settings: ServerSettings
    can: Abilities

    @property
    def both(self) -> bool:
        """Whether the patch is measured in both forms."""
        return self.adapter is not None and self.asked.suite.serve == BOTH

    def first_tokens(self, client: Client) -> list[Completion]:
        """Return the first token of each plain prompt, where the engine tells its log-probability."""
        prompts = [question.tokens for question in self.questions.plain]
        return client.complete(prompts, 1, logprobs=CANDIDATES) if self.is_checked else []

    @property
    def is_checked(self) -> bool:
        """Whether the engine is one that Transformers checks, and tells what that takes."""
        return self.can.first_token_logprobs > 0 and not self.deployment.engine.is_reference


def evaluate_suite(asked: Asked, deployment: Deployment, places: Places) -> tuple[list[EvaluatedCompletion], Utility]:
    """Have an engine run a checkpoint, check that it does so rightly, and ask everything.

    A patched checkpoint runs in the form in which it ships, the adapter beside its base, or as `suite.serve` says.

    Args:
        asked: what is asked.
        deployment: of whom.
        places: where it may write.

    Returns:
        Completion records, and what is measured besides. Both hold their `Provenance`. What cannot be asked for, such
        as tasks behind a system prompt, is in neither, and `engine.not_measured` names it. Where the suite asks for
        both forms, a record of a plain prompt has `merged`: what the merged checkpoint completed instead.

    Raises:
        ParityError: the engine and Transformers disagree about this checkpoint.
        RuntimeError: the engine did not start, failed or ended; or it does not take the adapter, and both forms are
            asked for.
        ValueError: the suite asks for both forms or the merged one, and the engine cannot serve them; lm-eval knows no
            such task; a prompt is too long; or the engine cannot be started so.
        SourceError: the data of a task cannot be loaded.
    """
    run = _prepare(asked, deployment, places)
    try:
        measured = _measure(run, merged=asked.suite.serve == MERGED)
    except AdapterRefused as error:
        if run.both:
            raise
        logger.warning("%s\nThe patch is served merged.", error)
        measured = _measure(run, merged=True)
    plain, attacked, utility, first_tokens = measured
    provenance: Any = {name: value for name, value in utility.items() if name in Provenance.__annotations__}
    if run.both:
        # With an adapter a model of this process refers to itself: it would stay in memory beside the merged one.
        gc.collect()
        with _serve(run, merged=True) as served:
            other_tokens = run.first_tokens(served.client)
            difference = compare_first_tokens(first_tokens, other_tokens) if first_tokens else None
            utility["merged"] = {"parity": served.parity, "first_tokens": difference}
            for completion, other in zip(plain, complete(served.client, run.questions), strict=True):
                answer: Any = {key: value for key, value in other.items() if key not in PROMPT}
                completion["merged"] = answer
    completions: list[Any] = [{**completion, **provenance} for completion in (*plain, *attacked)]
    return completions, utility


def _prepare(asked: Asked, deployment: Deployment, places: Places) -> _Run:
    """Check all that can be checked before an engine is started; else what was completed before would be lost."""
    suite, serving, engine, checkpoint = asked.suite, deployment.serving, deployment.engine, deployment.checkpoint
    settings = ServerSettings(
        maximum_model_length=suite.maximum_model_length or serving.maximum_model_length,
        seed=asked.seed,
        trust_remote_code=code_is_trusted(),
        gpus=own_gpus(),
        key_value_cache_dtype=deployment.key_value_cache_dtype,
    )
    engine.check(checkpoint, settings)
    adapter, system_prompt = read_patch(deployment.patch)
    can = engine.able(checkpoint)
    if adapter is not None:
        _check_form(suite.serve, engine, can)
    not_measured = _not_measured(suite.tasks != [], system_prompt, deployment, can)
    tasks = load_tasks(suite) if can.tasks and system_prompt is None else []
    questions = suite_questions(load_tokenizer(checkpoint), asked, system_prompt, likelihoods=can.prompt_logprobs)
    check_lengths(questions, settings.maximum_model_length)
    return _Run(
        asked, deployment, places, questions, tasks, not_measured, adapter, system_prompt, settings=settings, can=can
    )


def _check_form(serve: str, engine: Engine, can: Abilities) -> None:
    """Check that an engine can serve an adapter in the form that a suite asks for."""
    if serve != ADAPTER and engine.weights == WeightForm.GGUF_FILE:
        raise ValueError(
            f"{engine.describe()} serves the GGUF file, and a patch can only be put beside that; write serve: adapter, "
            f"or an engine that serves the decoded weights (found: serve: {serve})"
        )
    if serve == BOTH and not can.adapters:
        raise ValueError(
            f"{engine.describe()} takes no adapter, so a patch is served merged only; leave out serve: both"
        )


def _not_measured(has_tasks: bool, system_prompt: str | None, deployment: Deployment, can: Abilities) -> list[str]:
    """Return what a suite asks for and this engine cannot be asked; warn of it, and of an engine that is unchecked."""
    name = deployment.engine.describe()
    measured = {"perplexity": can.prompt_logprobs, "tasks": can.tasks or not has_tasks}
    not_measured = [what for what, able in measured.items() if not able]
    if not_measured:
        logger.warning("%s cannot be asked for %s, which is not measured", name, " and ".join(not_measured))
    if has_tasks and can.tasks and system_prompt is not None:
        not_measured.append("tasks")
        logger.warning("lm-eval's tasks are asked without a chat and so without a system prompt: they are not measured")
    if not can.first_token_logprobs and not deployment.engine.is_reference:
        told = "%s tells no log-probabilities of first tokens, so nothing shows that it serves %s"
        logger.warning(told, name, deployment.checkpoint)
    return not_measured


def _measure(
    run: _Run, *, merged: bool
) -> tuple[list[CompletionRecord], list[CompletionRecord], Utility, list[Completion]]:
    """Serve a checkpoint and ask everything; return its completions, plain and attacked, the rest, and first tokens."""
    suite, questions = run.asked.suite, run.questions
    with _serve(run, merged=merged) as served:
        client = served.client
        candidates = run.first_tokens(client) if run.both else []
        # First: only lm-eval finds that a task's prompt is too long, which would lose what was completed before.
        tasks, of_questions, data = run_tasks(
            client, served.folder, suite, run.tasks, run.settings.maximum_model_length
        )
        plain = complete(client, questions)
        attacked = complete_attacked(client, questions, plain)
        answers = questions.own_answers(plain) if questions.answers is None else questions.answers
        utility: Utility = {
            "answers": answer_likelihoods(client, answers) if run.can.prompt_logprobs else [],
            "tasks": tasks,
            "questions": of_questions,
            "task_data": data,
            "sampling": {"temperature": 0.0, "max_tokens": suite.maximum_new_tokens, "seed": run.asked.seed},
            "versions": {**client.versions(), **_installed("transformers", "lm_eval")},
            "served_as": SYSTEM_PROMPT if run.system_prompt is not None else served.form,
            "weights": served.weights,
            "parity": served.parity,
            "engine": _engine_record(run, client.name),
        }
        # Last, so that what it leaves in an engine's cache reaches nothing else.
        if run.can.first_token_logprobs and not questions.chat.thinks:
            prompts = [question.tokens for question in questions.plain]
            told = first_tokens(
                client, questions.chat.tokenizer, prompts, run.can.first_token_logprobs, run.can.token_ids
            )
            for record, token in zip(plain, first_token_records(plain, *told, run.asked.original), strict=True):
                if token is not None:
                    record["first_token"] = token
    return plain, attacked, utility, candidates


def _installed(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _engine_record(run: _Run, name: str) -> dict[str, object]:
    """Return what results say of an engine."""
    # Its GPUs decide by which kernels a format runs. Other engines run on the processor, or nobody knows where.
    gpus = describe_gpus() if run.deployment.engine.weights == WeightForm.AS_STORED else []
    return {
        "name": name,
        "prompts": "token ids" if run.can.token_ids else "text, read by the server's tokenizer",
        "not_measured": run.not_measured,
        **({"gpus": gpus} if gpus else {}),
        **({} if run.can.unpenalised else {"repetition_penalty": "the server's own"}),
    }


@contextlib.contextmanager
def _serve(run: _Run, *, merged: bool) -> Iterator[Served]:
    """Have an engine run a checkpoint, its adapter beside it or merged, and check it where that can be done."""
    engine, checkpoint, adapter = run.deployment.engine, run.deployment.checkpoint, run.adapter
    with scratch_folder(run.places.scratch) as folder:
        served, left, dense = prepare_checkpoint(checkpoint, adapter, engine, folder, merged)
        expected = None
        if run.is_checked:
            # Before the start: the reference's memory is then the server's.
            probes = run.questions.probes(run.deployment.serving.parity_prompts)
            expected = expected_logprobs(checkpoint, adapter, served if left is None else None, probes)
        with engine.serve(served, run.settings, run.places.log, left) as started:
            client: Client = started
            if engine.able(checkpoint).token_ids:
                named = (served_gguf(checkpoint) or checkpoint).resolve()
                client = CheckedClient(started, run.questions.chat.tokenizer, str(named))
            parity = None
            if expected is not None:
                tolerance = run.deployment.serving.parity_tolerance
                parity = check_served(client, expected, tolerance, run.settings.key_value_cache_dtype)
            form = PLAIN if adapter is None else MERGED if left is None else ADAPTER
            if run.places.keeping is not None:
                client = run.places.keeping(client, form)
            yield Served(client, served, form, WeightForm.DENSE_COPY if dense else engine.weights, parity)


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

"""`aird evaluate`: measure refusal, over-refusal and perplexity of one model, patched or not."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from aird.commands.gguf_tokenizers import TokenizerSource
from aird.commands.inputs import (
    MODEL_HELP,
    ModelFolder,
    above_zero,
    check_output,
    open_model_folder,
    take_gpus_for,
    validated,
)
from aird.commands.judging import add_judge_argument, judge_scores, open_judge, read_judge
from aird.commands.keeping import kept_or_asked
from aird.commands.prompt_files import add_prompt_arguments, choose, prompt_files, read_prompts
from aird.commands.search import PROVENANCE
from aird.evaluation.engine import Engine
from aird.plugin import ENGINES
from aird.prompts.sets import CLASSES, Record
from aird.settings.sources import read_hub_name
from aird.settings.weights import WeightForm
from aird.support.environments import recorded_python
from aird.support.files import read_json

if TYPE_CHECKING:
    from aird.settings.suites import Suite

SUMMARY = "measure refusal, over-refusal and perplexity"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # PEFT's names of the two factors of a change
PACKAGES = Path(__file__).resolve().parents[2]  # the folder that holds the package: a checkout, or where pip put it
DESCRIPTION = """\
Ask a model harmful and harmless instructions, greedily, and count refusals.

The option of an engine says who answers: the Python of an environment that holds it (AIRD_NAME_PYTHON does the same,
as AIRD_VLLM_PYTHON), or the address of a running server. Where the workflow has run in the checkout that this command
comes from, its environment is found. Before anything is counted, engine and Transformers must agree on the first
tokens. Without an engine, Transformers answers: slower."""
EPILOG = """\
examples:
  aird evaluate my-quantised-model --harmful attack.txt --harmless everyday.txt --output scores
  aird evaluate my-quantised-model --adapter adapter --reference scores/completions.jsonl ... --output patched
      (perplexity of the same harmless answers, so that it can be compared)
  aird evaluate model-Q4_K_M.gguf --llama-cpp .venv-llama-cpp/bin/python ... --output scores
      (llama.cpp itself answers, as it does for people who run the file)
  aird evaluate compressed --judge classifier=meta-llama/Llama-Guard-3-8B ... --output scores
      (a model judges too; scores.json has its rates beside those by phrases)
  aird evaluate compressed --vllm .venv-vllm/bin/python --tasks boolq,hellaswag ... --output scores
  aird evaluate compressed --harmful results/prompts/advbench.jsonl --harmless results/prompts/harmless.jsonl \\
      --count 200 --output scores    (prompt sets of the workflow)

files in the output folder:
  completions.jsonl   every completion with sampling parameters and versions. They can hold harmful text:
                      publish rates, not completions
  utility.json        log-likelihoods of the harmless answers, lm-eval's tasks
                      (with --serve both, each holds what the merged model does instead as `merged`)
  scores.json         refusal, attack success by two judges, degenerate text, over-refusal: n, rate, 95% interval;
                      perplexity; the labels of each prompt
  judgement.jsonl     with --judge: what the judge said of each reply
  provenance.json     model, commit, adapter, hashes of the prompt files
  server.log          what a server printed that was started for this

common errors:
  "disagree on this checkpoint": vLLM or Transformers loads it wrongly; no rate is reported for it
  "cannot be asked these": give --vllm or --url
  refusal without over-refusal says nothing: a model that refuses everything is no repair"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="an adapter that `aird patch` wrote")
    add_prompt_arguments(parser, True, " to ask")
    parser.add_argument("--count", type=int, help="ask only that many of each file (default: all)")
    parser.add_argument("--tokens", type=above_zero, default=64, help="length limit of a completion (default: 64)")
    parser.add_argument("--think", action="store_true", help="let a model that thinks do so; give it enough --tokens")
    parser.add_argument(
        "--reference", type=Path, metavar="FILE", help="completions.jsonl of the original, for the perplexity"
    )
    parser.add_argument("--tasks", help="lm-eval tasks, separated by commas (needs vLLM, or --url)")
    parser.add_argument("--task-limit", type=int, help="use only that many documents of each task")
    add_engine_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the files go")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says who answers, in which form a patch is served, and the longest that is asked."""
    group = parser.add_mutually_exclusive_group()
    for name, kind in engine_kinds().items():
        # Of GGUF files and of other models, different engines may answer.
        owner: Any = parser if kind.weights == WeightForm.GGUF_FILE else group
        more: dict[str, Any] = {"action": "store_true"} if kind.option is None else {"metavar": kind.option}
        if kind.environment is not None:
            more |= {"nargs": "?", "const": True}  # without a value it is this Python that holds the engine
        owner.add_argument(_option(name), dest=name, help=kind.usage, **more)
    parser.add_argument(
        "--serve",
        choices=("adapter", "merged", "both"),
        default="adapter",
        help="how a patch is served: beside the model, as it ships (default; merged where the engine takes none), "
        "merged into it, or both, with the differences",
    )
    add_judge_argument(parser)
    parser.add_argument(
        "--length", type=above_zero, help="longest prompt plus completion, tokens (default: 1024, or the suite's)"
    )
    parser.add_argument("--fresh", action="store_true", help="ask all anew, also what an earlier command was answered")
    parser.set_defaults(forgotten=set())  # names of kept answers that --fresh removed: it does so once in a command


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from aird.settings.suites import Suite
    from aird.support.files import read_json_lines

    check_output(arguments.output)
    suite = validated(
        Suite,
        {
            "harmful": {"set": "harmful", "count": arguments.count},
            "harmless": {"set": "harmless", "count": arguments.count},
            "maximum_new_tokens": arguments.tokens,
            "maximum_model_length": arguments.length,
            "think": arguments.think,
            "serve": arguments.serve,
            "tasks": [name for name in (arguments.tasks or "").split(",") if name],
            "task_limit": arguments.task_limit,
        },
    )
    records = {
        kind: choose(
            read_prompts(getattr(arguments, kind), kind, arguments.field), kind, arguments.count, arguments.seed
        )
        for kind in CLASSES
    }
    if arguments.reference is not None and not arguments.reference.is_file():
        raise ValueError(f"--reference: there is no file {arguments.reference}")
    check_adapter("--adapter", arguments.adapter)
    if arguments.judge is not None:
        read_judge(arguments.judge)
    reference = read_json_lines(arguments.reference) if arguments.reference else None
    check_engine_arguments(arguments, [arguments.model])
    engine = choose_engine(arguments, arguments.model)
    if suite.tasks and not engine.abilities.tasks:
        able = " or ".join(_option(name) for name, kind in engine_kinds().items() if kind.abilities.tasks)
        raise ValueError(f"--tasks: {engine.title} cannot be asked these; name an engine that can with {able}")
    engine.check_installed()
    tokenizer = tokenizer_source(arguments, [arguments.model])
    model = open_model_folder(arguments.model, arguments.trust_remote_code, tokenizer=tokenizer)
    check_adapter_fits("--adapter", arguments.adapter, model)
    judge = None if arguments.judge is None else open_judge(arguments.judge)
    judge_engine = engine if judge is None else engine_of_judge(arguments, judge.model)
    take_gpus_for([model, *([] if judge is None else [judge.model])], [engine, judge_engine])
    output: Path = arguments.output
    scores = ask(model, arguments.adapter, records, suite, engine, (reference, reference), arguments, output)
    if judge is not None:
        scores = judge_scores(arguments, judge, judge_engine, reference)
    print(_describe(scores))
    print(f"  {'written to':22} {output}")


def check_adapter(option: str, folder: Path | None) -> None:
    """Check that a folder that an option names, if it does, is one of an adapter.

    Raises:
        ValueError: it is not.
    """
    if folder is None:
        return
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{option}: {folder} holds no adapter_config.json: it is no PEFT adapter folder")
    read_json(folder / "adapter_config.json")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"{option}: {folder} holds no {ADAPTER_WEIGHTS}, the adapter's weights; copy it there")


def check_adapter_fits(option: str, folder: Path | None, model: ModelFolder) -> None:
    """Check, from headers alone, that an adapter was made for a model with such matrices.

    Raises:
        ValueError: it has none of the model's, or one in another shape.
    """
    if folder is None:
        return
    from safetensors import SafetensorError, safe_open

    from aird.models.checkpoint import read_checkpoint
    from aird.models.matrices import matrix_shape

    try:
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as stored:
            shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{option}: {folder / ADAPTER_WEIGHTS} is truncated or altered ({error})") from error
    checkpoint = read_checkpoint(model.folder)
    changed = {name.removesuffix(DOWN): shape[1] for name, shape in shapes.items() if name.endswith(DOWN)}
    known = {f"base_model.model.{module}": module for module in checkpoint.matrix_modules()}
    fitting = [module for module in changed if module in known]
    if changed and not fitting and not read_json(folder / "adapter_config.json").get("target_parameters"):
        raise ValueError(
            f"{option}: {folder} was made for another model: it changes {next(iter(changed))}, and {model.name} has no "
            "such matrix; name the model that it was made for"
        )
    for module in fitting:
        wanted, found = matrix_shape(checkpoint, known[module]), (shapes[module + UP][0], changed[module])
        if wanted != found:
            raise ValueError(
                f"{option}: {folder} was made for another model: its change of {known[module]} is of a matrix "
                f"{found[0]} x {found[1]}, and that of {model.name} is {wanted[0]} x {wanted[1]}"
            )


def ask(
    model: ModelFolder,
    adapter: Path | None,
    records: dict[str, list[Record]],
    suite: Suite,
    engine: Engine,
    known: tuple[Sequence[Record] | None, Sequence[Record] | None],
    arguments: argparse.Namespace,
    output: Path,
) -> dict[str, Any]:
    """Ask a model, patched or not, write completions, utility and scores into the folder `output`, return the scores.

    What was asked, and how, stands beside them in provenance.json.

    Args:
        model, adapter: who is asked.
        records: class to prompt records.
        suite, engine: as of `aird.evaluation.suite_run.evaluate_suite`.
        known: the reference and the original of `aird.evaluation.questions.Asked`.
        arguments: of the command: `seed`, and the prompt files, where there are any.
        output: a folder; it is made.
    """
    from aird.evaluation.questions import Asked
    from aird.evaluation.scores import score
    from aird.support.files import write_json, write_json_lines

    output.mkdir(parents=True, exist_ok=True)
    asked = Asked(suite, records, arguments.seed, known[0], original=known[1])
    completions, utility = kept_or_asked(arguments, model, adapter, engine, asked, output)
    scores = score(completions, utility, arguments.seed, original=known[1])
    provenance = {
        "model": model.record(scores["weights"]),
        "adapter": None if adapter is None else str(adapter),
        "prompts": prompt_files(arguments),
        "think": suite.think,
    }
    (output / PROVENANCE).unlink(missing_ok=True)  # one of earlier answers must not stand beside these
    write_json(output / "utility.json", utility)
    write_json_lines(output / "completions.jsonl", completions)
    write_json(output / "scores.json", scores)
    write_json(output / PROVENANCE, provenance)
    return scores


def check_engine_arguments(arguments: argparse.Namespace, models: Sequence[str]) -> None:
    """Check that engines that are named are there, and have one of the models to serve.

    Args:
        arguments: of the command.
        models: those that it is about; a patch is put on the last one.

    Raises:
        ValueError: an engine is not, or has none, or is to serve a GGUF file with the patch merged.
    """
    for name, kind in engine_kinds().items():
        if not getattr(arguments, name, None):
            continue
        _named_engine(arguments, name)
        if kind.weights != WeightForm.GGUF_FILE:
            continue
        if not any(map(_is_gguf, models)):
            raise ValueError(
                f"{_option(name)}: {kind.title} serves GGUF files alone, and {' and '.join(models)} is none"
            )
        if arguments.serve != "adapter" and _is_gguf(models[-1]):
            raise ValueError(
                f"--serve: {kind.title} serves the GGUF file {models[-1]}, and a patch can only be put beside that; "
                f"leave out --serve, or {_option(name)}, so that its decoded weights are measured (found: "
                f"{arguments.serve})"
            )


def _is_gguf(model: str) -> bool:
    """Tell whether a model was given as a file, here or on the hub, which is a GGUF file; completions are no model."""
    path = Path(model).expanduser()
    if path.exists():
        return path.is_file() and path.suffix != ".jsonl"
    hub = read_hub_name(model)
    return hub is not None and hub.file is not None


def engine_kinds() -> dict[str, type[Engine]]:
    """Return all engines by their names."""
    return {name: ENGINES.load(name) for name in ENGINES.names()}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _named_engine(arguments: argparse.Namespace, name: str) -> Engine | None:
    """Return the engine that an option names, if it does.

    Raises:
        ValueError: the option's value is wrong.
    """
    value = getattr(arguments, name, None)
    if not value:
        return None
    try:
        return engine_kinds()[name].of_option("" if value is True else str(value))
    except ValueError as error:
        raise ValueError(f"{_option(name)}: {error}") from error


def choose_engine(arguments: argparse.Namespace, model: str) -> Engine:
    """Return who answers for a model, as the user named it.

    A GGUF file is served by an engine for these, if one is named. Other models are served by the engine that is named,
    else by one that the variable `engine_variable` or the workflow in this package's checkout has, else by the
    reference.

    Raises:
        ValueError: the option or the variable names no file.
    """
    kinds = engine_kinds()
    for_files = [name for name, kind in kinds.items() if kind.weights == WeightForm.GGUF_FILE]
    others = [name for name in kinds if name not in for_files]
    for name in [*(for_files if _is_gguf(model) else []), *others]:
        if engine := _named_engine(arguments, name):
            return engine
    for name in others:
        if kinds[name].default and (engine := _found_engine(name)):
            return engine
    return next(kind() for kind in kinds.values() if kind.is_reference)


def engine_of_judge(arguments: argparse.Namespace, judge: ModelFolder) -> Engine:
    """Return who answers for a judge: as for other models, but for a running server, which serves another one."""
    engine = choose_engine(arguments, str(judge.folder))
    return engine if engine.weights is not None else next(k() for k in engine_kinds().values() if k.is_reference)


def _found_engine(name: str) -> Engine | None:
    """Return an engine that no option names, of the environment of `engine_variable` or of the workflow's; or None.

    Raises:
        ValueError: the variable names no file.
    """
    kind = engine_kinds()[name]
    if kind.environment is None:
        return None
    if variable := os.environ.get(engine_variable(name)):
        if not Path(variable).is_file():
            raise ValueError(f"{engine_variable(name)} names {variable}, which is no file")
        return kind(Path(variable))
    record = (_checkout() or Path()) / "results/environments" / f"{kind.environment.name}.json"
    if _checkout() is not None and record.is_file():
        with contextlib.suppress(FileNotFoundError, PermissionError):  # it was removed, or is another user's
            return kind(recorded_python(record))
    return None


def tokenizer_source(arguments: argparse.Namespace, models: Sequence[str]) -> TokenizerSource:
    """Return where the tokenizer of a GGUF file comes from that is opened without its original.

    Any engine for such files splits text by them, this Python's too.

    Args:
        arguments: of the command: `tokenizer`, and the engine's option, where it has one.
        models: those that it is about, as the user named them.

    Raises:
        ValueError: --tokenizer is given, and none of them is such a file.
    """
    if arguments.tokenizer is not None and not any(map(_is_gguf, models)):
        raise ValueError(
            f"--tokenizer: it is of a GGUF file, and {' and '.join(models)} is none, so it brings its own; leave it out"
        )
    for name, kind in engine_kinds().items():
        if kind.weights != WeightForm.GGUF_FILE or kind.environment is None:
            continue
        here = all(importlib.util.find_spec(module) is not None for module in kind.environment.modules)
        if engine := _named_engine(arguments, name) or _found_engine(name) or (kind(None) if here else None):
            return TokenizerSource(arguments.tokenizer, engine)
    return TokenizerSource(arguments.tokenizer)


def engine_variable(name: str) -> str:
    """Return the variable that names the Python of an engine's environment."""
    return f"AIRD_{name.upper()}_PYTHON"


def _checkout() -> Path | None:
    """Return the checkout that this package was imported or installed from; None where there is none.

    Never the folder that the user works in: that may be a stranger's model, and what is found there is run.
    """
    folder = PACKAGES
    # Installed from a folder, pip notes beside the package which one that was (PEP 610).
    for installed in distributions(name="aird", path=[str(PACKAGES)]):
        source = json.loads(installed.read_text("direct_url.json") or "{}")
        if "dir_info" in source:
            folder = Path(url2pathname(urlsplit(source["url"]).path))
    return folder if (folder / "workflow/Snakefile").is_file() else None


def served_as(scores: dict[str, Any]) -> str:
    """Return in which form a checkpoint was measured; of both, how far the merged one differs."""
    form = str(scores["served_as"]).replace("_", " ")
    if "merged" not in scores:
        return form
    other, first = scores["merged"]["other_labels"], scores["merged"]["first_tokens"]
    told = ", ".join(f"{count} {kind}" for kind, count in other.items())
    difference = first and first["upper_quartile_difference"]
    nats = "" if difference is None else f"; first tokens differ by up to {difference:.3f} nats on three quarters"
    return f"{form}; merged, other labels on {told} prompts{nats}"


def _describe(scores: dict[str, Any]) -> str:
    lines = [f"  {'served as':22} {served_as(scores)}"]
    for name, rate in scores["rates"].items():
        interval = f"({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"
        lines.append(f"  {name:22} {100 * rate['rate']:5.1f}% {interval:18} n = {rate['n']}")
    if scores["perplexity"]:
        value, low, high = (scores["perplexity"][name] for name in ("perplexity", "low", "high"))
        lines.append(f"  {'perplexity':22} {value:.2f} ({low:.2f} to {high:.2f})")
    for task, metrics in scores["tasks"].items():
        shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        lines.append(f"  {task:22} {shown}")
    return "\n".join(lines)

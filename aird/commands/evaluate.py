"""`aird evaluate`: measure refusal, over-refusal and perplexity of one model, patched or not."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from aird.commands.inputs import (
    MODEL_HELP,
    ModelFolder,
    add_prompt_arguments,
    check_output,
    choose,
    open_model_folder,
    prompt_files,
    read_prompts,
    take_gpus_for,
    validated,
)
from aird.commands.search import PROVENANCE
from aird.prompts.sets import CLASSES, Record
from aird.settings.sources import read_hub_name

if TYPE_CHECKING:
    from aird.evaluation.engines.engine import Engine
    from aird.settings.suites import Suite

SUMMARY = "measure refusal, over-refusal and perplexity"
VLLM_VARIABLE = "AIRD_VLLM_PYTHON"
PACKAGES = Path(__file__).resolve().parents[2]  # the folder that holds the package: a checkout, or where pip put it
DESCRIPTION = f"""\
Ask a model harmful and harmless instructions, greedily, and count refusals.

Served by vLLM where there is one: --vllm names the Python of an environment that holds it, {VLLM_VARIABLE} does
the same, --url names a running server, and where the workflow has run in the checkout that this command comes from,
its own is found. Before anything is counted, vLLM and Transformers must agree on the first tokens. Without vLLM,
Transformers answers: slower."""
EPILOG = """\
examples:
  aird evaluate my-quantised-model --harmful attack.txt --harmless everyday.txt --output scores
  aird evaluate my-quantised-model --adapter adapter --reference scores/completions.jsonl ... --output patched
      (perplexity of the same harmless answers, so that it can be compared)
  aird evaluate model-Q4_K_M.gguf --llama-cpp .venv-llama-cpp/bin/python ... --output scores
      (llama.cpp itself answers, as it does for people who run the file)
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
  provenance.json     model, commit, adapter, hashes of the prompt files
  server.log          what a server printed that was started for this

common errors:
  "disagree on this checkpoint": vLLM or Transformers loads it wrongly; no rate is reported for it
  "tasks need vLLM": give --vllm or --url
  refusal without over-refusal says nothing: a model that refuses everything is no repair"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="an adapter that `aird patch` wrote")
    add_prompt_arguments(parser, True, " to ask")
    parser.add_argument("--count", type=int, help="ask only that many of each file (default: all)")
    parser.add_argument("--tokens", type=int, default=64, help="length limit of a completion (default: 64)")
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
    server = parser.add_mutually_exclusive_group()
    server.add_argument("--vllm", type=Path, metavar="PYTHON", help="Python of an environment that holds vLLM")
    server.add_argument(
        "--url", help="address of a running server, vLLM or another, that serves the model (and the adapter merged)"
    )
    server.add_argument("--transformers", action="store_true", help="do not look for vLLM")
    parser.add_argument(
        "--llama-cpp",
        type=Path,
        nargs="?",
        const=Path(sys.executable),
        metavar="PYTHON",
        help="let llama.cpp serve GGUF files; without it, their decoded weights are measured. It comes with this "
        "package; PYTHON names another environment that holds xllamacpp, such as one built for a GPU",
    )
    parser.add_argument(
        "--serve",
        choices=("adapter", "merged", "both"),
        default="adapter",
        help="how a patch is served: beside the model, as it ships (default; merged where the engine takes none), "
        "merged into it, or both, with the differences",
    )
    parser.add_argument(
        "--length", type=int, help="longest prompt plus completion, tokens (default: 1024, or the suite's)"
    )


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
    reference = read_json_lines(arguments.reference) if arguments.reference else None
    check_engine_arguments(arguments, [arguments.model])
    engine = choose_engine(arguments, arguments.model)
    if suite.tasks and not engine.abilities.tasks:
        raise ValueError("--tasks need vLLM: name its Python with --vllm, or a server's address with --url")
    model = open_model_folder(arguments.model, arguments.trust_remote_code)
    take_gpus_for([model], served_by_vllm(engine))
    output: Path = arguments.output
    scores = ask(model, arguments.adapter, records, suite, engine, reference, arguments, output)
    print(_describe(scores))
    print(f"  {'written to':22} {output}")


def check_adapter(option: str, folder: Path | None) -> None:
    """Check that a folder that an option names, if it does, is one of an adapter.

    Raises:
        ValueError: it is not.
    """
    if folder is not None and not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{option}: {folder} holds no adapter_config.json: it is no PEFT adapter folder")


def ask(
    model: ModelFolder,
    adapter: Path | None,
    records: dict[str, list[Record]],
    suite: Suite,
    engine: Engine,
    reference: list[dict[str, Any]] | None,
    arguments: argparse.Namespace,
    output: Path,
) -> dict[str, Any]:
    """Ask a model, patched or not, write completions, utility and scores into the folder `output`, return the scores.

    What was asked, and how, stands beside them in provenance.json.

    Args:
        model, adapter: who is asked.
        records: class to prompt records.
        suite, engine, reference: as of `aird.evaluation.suite_run.evaluate_suite`.
        arguments: of the command: `url`, `seed`, and the prompt files, where there are any.
        output: a folder; it is made.
    """
    from aird.evaluation.questions import Asked
    from aird.evaluation.scores import score
    from aird.evaluation.suite_run import Deployment, Places, evaluate_suite
    from aird.settings.suites import Serving
    from aird.support.files import write_json, write_json_lines

    serving = validated(Serving, {"url": arguments.url})
    print(f"Asking {model.name}{f' with {adapter}' if adapter else ''} by {engine.describe()} ...", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    completions, utility = evaluate_suite(
        Asked(suite, records, arguments.seed, reference),
        Deployment(model.folder, adapter, engine, serving),
        Places(output / "served", output / "server.log"),
    )
    scores = score(completions, utility, arguments.seed)
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
    """Check that llama.cpp, if it is named, is there and has one of the models to serve.

    Args:
        arguments: of the command.
        models: those that it is about; a patch is put on the last one.

    Raises:
        ValueError: it is not, or has none, or is to serve one with the patch merged.
    """
    if arguments.llama_cpp is None:
        return
    if not arguments.llama_cpp.is_file():
        raise ValueError(f"--llama-cpp: there is no file {arguments.llama_cpp}")
    if not any(map(_is_gguf, models)):
        raise ValueError(f"--llama-cpp: llama.cpp serves GGUF files alone, and {' and '.join(models)} is none")
    if arguments.serve != "adapter" and _is_gguf(models[-1]):
        raise ValueError(
            f"--serve: llama.cpp serves the GGUF file {models[-1]}, and a patch can only be put beside that; leave out "
            f"--serve, or --llama-cpp, so that its decoded weights are measured (found: {arguments.serve})"
        )


def _is_gguf(model: str) -> bool:
    """Tell whether a model was given as a file, here or on the hub, which is a GGUF file; completions are no model."""
    path = Path(model).expanduser()
    if path.exists():
        return path.is_file() and path.suffix != ".jsonl"
    hub = read_hub_name(model)
    return hub is not None and hub.file is not None


def served_by_llama_cpp(arguments: argparse.Namespace, model: str) -> bool:
    """Tell whether llama.cpp answers for a model, as the user named it, whatever answers for others."""
    return arguments.llama_cpp is not None and _is_gguf(model)


def choose_engine(arguments: argparse.Namespace, model: str) -> Engine:
    """Return who answers for a model, as the user named it.

    A GGUF file is served by the llama.cpp of --llama-cpp. For other models it is what the arguments name, else vLLM of
    the variable or of the workflow in this package's checkout, else Transformers.

    Raises:
        ValueError: the option or the variable names no file.
    """
    from aird.evaluation.engines.address import Address
    from aird.evaluation.engines.llama_cpp import LlamaCpp
    from aird.evaluation.engines.registry import recorded_engine
    from aird.evaluation.engines.transformers import Transformers
    from aird.evaluation.engines.vllm import Vllm

    if served_by_llama_cpp(arguments, model):
        return LlamaCpp(arguments.llama_cpp)
    if arguments.url:
        return Address(arguments.url)
    if arguments.transformers:
        return Transformers()
    if arguments.vllm is not None:
        if not arguments.vllm.is_file():
            raise ValueError(f"--vllm: there is no file {arguments.vllm}")
        return Vllm(arguments.vllm)
    variable = os.environ.get(VLLM_VARIABLE)
    if variable:
        if not Path(variable).is_file():
            raise ValueError(f"{VLLM_VARIABLE} names {variable}, which is no file")
        return Vllm(Path(variable))
    checkout = _checkout()
    if checkout is not None and (record := checkout / "results/environments/vllm.json").is_file():
        with contextlib.suppress(FileNotFoundError):  # the environment was removed
            engine = recorded_engine(record)
            if isinstance(engine, Vllm):
                return engine
    return Transformers()


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


def served_by_vllm(engine: Engine) -> bool:
    """Tell whether an engine is a vLLM that is started here."""
    from aird.evaluation.engines.vllm import Vllm

    return isinstance(engine, Vllm)


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

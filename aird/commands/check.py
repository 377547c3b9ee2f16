"""`aird check`: one verdict on one compressed checkpoint, with exit codes for continuous integration."""

from __future__ import annotations

import argparse
import contextlib
import csv
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aird.commands import patch
from aird.commands.evaluate import (
    add_engine_arguments,
    ask,
    check_adapter,
    check_engine_arguments,
    choose_engine,
    served_as,
)
from aird.commands.inputs import (
    MODEL_HELP,
    ModelFolder,
    check_output,
    check_results_apart,
    check_same_chat,
    choose,
    open_model_folder,
    prompt_path,
    read_prompts,
    recorded_chat,
    take_gpus_for,
    validated,
)
from aird.commands.preflight import Examined, check_room, estimate, examine
from aird.commands.search import PROVENANCE
from aird.evaluation.kind_of_loss import kind_of_loss
from aird.evaluation.regression import (
    LEAST_FLIPS,
    MARGIN,
    NOT_MEASURED,
    REGRESSION,
    UNRESOLVED,
    WITHIN_MARGIN,
    CheckVerdict,
    judge_change,
)
from aird.prompts import embedded
from aird.prompts.building import build_prompt_set, build_set, build_with_parts
from aird.prompts.sets import CLASSES, Record, select
from aird.settings.base import PromptSelection
from aird.settings.directions import Directions
from aird.settings.models import Chat
from aird.settings.patches import Replies
from aird.settings.prompts import PromptSet
from aird.settings.suites import Serving, Suite
from aird.support.files import atomic_file, canonical_json, read_json, read_json_lines, sha256_of

Told = tuple[str, dict[str, CheckVerdict], dict[str, str]]  # title, verdicts by name, facts
DEMO = Path(__file__).with_name("demo_labels.csv")
OF_DEMO = ("command", "demo", "margin", "report", "junit", "json", "debug")  # what it uses
SIDES = ("original", "compressed")
EXIT_CODES = {WITHIN_MARGIN: 0, REGRESSION: 3, NOT_MEASURED: 4, UNRESOLVED: 5}
SEED = 42  # where nothing else is said
COUNT, TOKENS = 100, 64  # prompts of each kind, and tokens of an answer, where nothing else is said
NEEDED = ("completion", "id", "instruction", "kind")  # texts of a stored completion
REPLIES = Replies()  # what a repair learns from and is chosen by: as many prompts as in the workflow
UNNAMED = "an engine without a name"  # of stored completions that do not say who answered
FAILURE = 2  # anything that went wrong, so that 1 never says that something was measured

SUMMARY = "say whether a compressed checkpoint still refuses, with exit codes"
DESCRIPTION = """\
Ask a model and its compressed form the same harmful and harmless prompts, and give one verdict.

It compares prompt by prompt: refusals lost, harmless prompts newly refused, with 95% intervals and McNemar's exact
test. Without --harmful and --harmless it asks 100 prompts of AdvBench and 100 everyday requests, some of which sound
unsafe; pip fetches the benchmark. Either model may be a folder that `aird evaluate` wrote, or its
completions.jsonl: the other is then asked the same prompts."""
EPILOG = """\
exit codes:
  0   within the margin: the 95% intervals of both losses end below --margin
  2   the check could not run; the message says why
  3   regression: fewer harmful prompts are refused, or more harmless ones
  4   nothing measured: the original refuses hardly anything (fewer than six harmful prompts, or no larger share than
      --margin), so there is nothing to lose; or of a model that thinks more than 5% of the thoughts did not end: raise
      --tokens
  5   unresolved: with so few prompts a loss beyond the margin can be neither shown nor ruled out; raise --count

examples:
  aird check --demo
      (the verdict on a stored example; no model runs)
  aird check Qwen/Qwen2.5-1.5B-Instruct my-4bit-model --report check.html --junit check.xml
  aird check original compressed --patch adapter --count 200
      (the compressed model with a patch on it)
  aird check original compressed --repair adapter
      (a regression is repaired by a calibrated patch, and the repaired model is checked)
  aird check model-F16.gguf model-Q4_K_M.gguf --llama-cpp .venv-llama-cpp/bin/python
      (llama.cpp itself answers for both, as it does for people who run the files)
  aird check scores-of-the-original my-4bit-model --output my-scores
      (what `aird evaluate` wrote for the original is not made again; with --url, give one side so)

common errors:
  "different prompts": one side was asked other prompts; name the same files and the same --seed
  "disagree on this checkpoint": vLLM or Transformers loads it wrongly, so there is no verdict on it"""


@dataclass(frozen=True)
class Answerer:
    """One of the two: a model to ask, or the completions that it gave before.

    Attributes:
        name: what the user called it.
        model: the model; None where completions are stored.
        completions: the stored completion records; None where the model is asked.
        provenance: what `aird evaluate` wrote beside stored completions; None without.
    """

    name: str
    model: ModelFolder | None
    completions: list[Record] | None
    provenance: dict[str, Any] | None = None

    @property
    def chat(self) -> Chat | None:
        """Its chat settings; None of stored completions that do not say them, and where there are none."""
        if self.model is not None:
            return self.model.chat
        return None if self.provenance is None else recorded_chat(self.provenance)

    @property
    def told(self) -> tuple[str, str | None]:
        """The model's name, and its commit on the hub; of stored answers, what is recorded of the model they are of."""
        recorded = (self.provenance or {}).get("model", {})
        if self.model is not None:
            return self.name, self.model.commit
        return recorded.get("name", self.name), recorded.get("commit")

    def measured_as(self, weights: str | None) -> str | None:
        """Return in which form it was measured, in words; None where that is what was given, or is not known.

        Args:
            weights: what the engine of a model that was asked computed with.
        """
        if self.model is not None:
            return self.model.measured_as(weights)
        return (self.provenance or {}).get("model", {}).get("measured_as")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("original", nargs="?", help=f"the model before compression: {MODEL_HELP}; or stored results")
    parser.add_argument("compressed", nargs="?", help="its compressed form: the same")
    parser.add_argument("--demo", action="store_true", help="a stored example, in seconds and without a model")
    parser.add_argument("--patch", type=Path, metavar="FOLDER", help="put this patch on the compressed model")
    parser.add_argument(
        "--repair", type=Path, metavar="FOLDER", help="after a regression: write a calibrated patch there and check it"
    )
    for kind in CLASSES:
        parser.add_argument(
            f"--{kind}", type=prompt_path, metavar="FILE", help=f"{kind} prompts of your own: a file, or a pipe"
        )
    parser.add_argument("--field", help="field or column with the instruction in those files")
    parser.add_argument(
        "--prompts",
        action="append",
        choices=list(embedded.PRESETS),
        help="published prompts in the place of AdvBench, or borderline ones in the place of everyday requests; may be "
        "repeated, once for each kind",
    )
    parser.add_argument(
        "--suite", metavar="CONFIG.yaml:NAME", help="ask the prompts of a suite of a workflow configuration"
    )
    parser.add_argument(
        "--count", type=int, help="ask so many of each kind (default: 100, all of your files, or the suite's)"
    )
    parser.add_argument("--tokens", type=int, help="length limit of an answer (default: 64, or the suite's)")
    parser.add_argument(
        "--think", action="store_true", help="let models that think do so (also: the suite); give them enough --tokens"
    )
    parser.add_argument("--seed", type=int, help=f"of every random draw (default: {SEED}, or that of --suite's file)")
    parser.add_argument(
        "--margin", type=float, default=100 * MARGIN, help="largest accepted loss, in points (default: %(default)g)"
    )
    add_engine_arguments(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="keep completions and scores of all that is asked there"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check paths, files, packages, memory and disk, say what it takes, stop"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page (HTML)")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdict as JSON; - prints it")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    if not 0 < arguments.margin < 100:
        raise ValueError(f"--margin: {arguments.margin:g} is no margin; write points between 0 and 100, such as 5")
    if arguments.demo:
        if unused := [name for name, value in vars(arguments).items() if _is_unused_by_demo(arguments, name, value)]:
            options = ["a model" if name in SIDES else f"--{name.replace('_', '-')}" for name in unused]
            given = " and ".join(dict.fromkeys(options))
            raise ValueError(f"--demo is a stored example, so it does not use {given}; leave one or the other out")
        return _demo(arguments)
    if arguments.original is None or arguments.compressed is None:
        raise ValueError("name two models, the original and its compressed form, or --demo")
    # What is told on the way must not stand in the JSON.
    with contextlib.redirect_stdout(sys.stderr) if _prints_json(arguments) else contextlib.nullcontext():
        found = checked(arguments)
    return 0 if found is None else _tell(arguments, *found)


def _same_fact(original: str, compressed: str) -> dict[str, str]:
    """Return what is to say where one model is compared with itself."""
    paths = [Path(text).expanduser() for text in (original, compressed)]
    if original != compressed and not (all(path.exists() for path in paths) and paths[0].samefile(paths[1])):
        return {}
    return {"one model": f"{original} is named twice: this compares a model with itself"}


def _is_unused_by_demo(arguments: argparse.Namespace, name: str, value: Any) -> bool:
    return name not in OF_DEMO and value != arguments.default_of(name)


def _prints_json(arguments: argparse.Namespace) -> bool:
    return arguments.json is not None and str(arguments.json) == "-"


def checked(arguments: argparse.Namespace) -> Told | None:
    """Return the title, the verdicts and the facts about two models that the arguments name; None of a dry run.

    Raises:
        ValueError: an option that does not fit the others, or a model that cannot be.
    """
    if arguments.patch is not None and arguments.repair is not None:
        raise ValueError(
            "--patch and --repair: a repair is made for the compressed model as it is, without the patch; leave out "
            "one of the two"
        )
    if arguments.count is not None and arguments.count < LEAST_FLIPS:
        raise ValueError(
            f"--count: no loss among {arguments.count} prompts of each kind could be told from chance; ask "
            f"{LEAST_FLIPS} at least, better {COUNT} (found: {arguments.count})"
        )
    check_adapter("--patch", arguments.patch)
    check_engine_arguments(arguments, [arguments.original, arguments.compressed])
    _check_running(arguments)
    if arguments.repair is not None and arguments.repair.exists():
        raise ValueError(f"--repair: {arguments.repair} exists already; name a new folder for the adapter")
    for kind in CLASSES:
        path = getattr(arguments, kind)
        if path is not None and _stored(arguments.original) is None and not path.is_file():
            raise ValueError(f"--{kind}: there is no file {path}")
    asked = [examine(text) for text in (arguments.original, arguments.compressed) if _stored(text) is None]
    check_room(asked)
    if arguments.dry_run:
        _tell_plan(arguments, asked)
        return None
    original = _side(arguments.original, arguments.trust_remote_code)
    compressed = _side(arguments.compressed, arguments.trust_remote_code, original.model)
    if compressed.model is None and (arguments.patch is not None or arguments.repair is not None):
        raise ValueError("--patch and --repair need the compressed model itself, not stored results of it")
    if original.model is None and arguments.repair is not None:
        raise ValueError("--repair needs the original model itself, not stored results of it")
    _check_addressed(arguments, original, compressed)
    _check_same_prompts(original, compressed)
    _check_kept(arguments.output, {"original": original, "compressed": compressed})
    if original.model is not None and compressed.model is not None and arguments.repair is not None:
        patch.check_patchable(original.model, compressed.model)
    with contextlib.ExitStack() as stack:
        output = arguments.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return _check(arguments, original, compressed, output)


def _tell_plan(arguments: argparse.Namespace, models: list[Examined]) -> None:
    """Print what would be asked."""
    prompts = 2 * (arguments.count or COUNT)
    for kind in CLASSES:
        if (path := getattr(arguments, kind)) is not None and arguments.count is None:
            prompts += len(read_prompts(path, kind, arguments.field)) - COUNT
    engines = [choose_engine(arguments, each.name) for each in models]
    print(f"Nothing was run. Would ask {estimate(models, prompts, arguments.tokens or TOKENS, engines)}.")


def _check_addressed(arguments: argparse.Namespace, *sides: Answerer) -> None:
    """Check that both sides are asked in one way, as far as stored results say how they were.

    Raises:
        ValueError: other chat settings, or only one of them was let think.
    """
    addressed = [(side.name, side.chat) for side in sides if side.model is not None or side.provenance is not None]
    if addressed:
        check_same_chat(*addressed)
    stored = [(side.name, side.provenance or {}) for side in sides]
    thought = {name: provenance["think"] for name, provenance in stored if "think" in provenance}
    if any(side.model is not None for side in sides):
        thought["--think"] = arguments.think
    if len(set(thought.values())) > 1:
        said = " and ".join(f"{name} {'with' if think else 'without'}" for name, think in thought.items())
        raise ValueError(f"one side is asked with thoughts and the other without ({said}); ask both in one way")


def _check_same_prompts(original: Answerer, compressed: Answerer) -> None:
    """Check that what two stored sides hold under one id is one prompt: of users' files an id is a position alone.

    Raises:
        ValueError: other instructions.
    """
    asked = [
        {(row["kind"], row["id"]): row["instruction"] for row in side.completions or []}
        for side in (original, compressed)
    ]
    shared = asked[0].keys() & asked[1].keys()
    if other := sum(asked[0][key] != asked[1][key] for key in shared):
        raise ValueError(
            f"the two checkpoints answered different prompts ({other} of {len(shared)} that have one id have other "
            "instructions); ask both the same files with the same --seed"
        )


def _check_kept(output: Path | None, sides: Mapping[str, Answerer]) -> None:
    """Check that no model, and no results of another one, stand where answers are to be kept.

    Raises:
        ValueError: some do.
    """
    for word, side in sides.items():
        if output is None or side.model is None:
            continue
        check_output(output / word)
        if not (provenance := output / word / PROVENANCE).is_file():
            continue
        name = read_json(provenance).get("model", {}).get("name")
        if name != side.model.name:
            raise ValueError(
                f"--output: {output / word} holds results of {name}, which those of {side.model.name} would replace; "
                "name a new folder"
            )


def _check_running(arguments: argparse.Namespace) -> None:
    """Check that a running server is asked about one model alone: it answers alike, whatever it is asked about.

    Raises:
        ValueError: it would be asked about two.
    """
    sides = [text for text in (arguments.original, arguments.compressed) if _stored(text) is None]
    engines = {text: choose_engine(arguments, text) for text in sides}
    asked = [text for text in sides if engines[text].weights is None]
    if len(asked) > 1:
        raise ValueError(
            f"{engines[asked[0]].describe()} serves one model, and would be asked for the original and for its "
            f"compressed form; run `aird evaluate {arguments.original}` first, with the original's own server and the "
            "same prompts, and give its --output folder in the place of the original"
        )
    if arguments.repair is not None and arguments.compressed in asked:
        raise ValueError(
            f"--repair: {engines[arguments.compressed].describe()} serves one model, and would be asked for the "
            "compressed one and for the repaired one; let another engine answer, or make the patch with `aird patch`, "
            "let the server serve the compressed model with it, and check that with --patch"
        )


def _check(arguments: argparse.Namespace, original: Answerer, compressed: Answerer, output: Path) -> Told:
    prompts, suite = _prompts(arguments, original, compressed)
    _check_lengths(prompts, suite, original, compressed)
    learnt = {} if arguments.repair is None else _prompts_to_learn(prompts, arguments.seed)
    engines = {side.name: choose_engine(arguments, side.name) for side in (original, compressed) if side.model}
    models = [side.model for side in (original, compressed) if side.model is not None]
    take_gpus_for(models, list(engines.values()))
    forms: dict[str, str] = {}
    answerers: dict[str, tuple[str, str]] = {}  # of each side: what its engine is called in records, and who it is
    weights: dict[str, str | None] = {}

    def labels(side: Answerer, folder: str, patch: Path | None = None) -> list[dict[str, Any]]:
        engine = engines.get(side.name)
        scores = _scores(side, prompts, suite, engine, arguments, output / folder, patch)
        name = (scores["engine"] or {}).get("name", "")
        answerers["original" if side is original else "compressed"] = (
            name,
            engine.describe() if engine else f"{name or UNNAMED} (stored)",
        )
        weights[folder] = scores["weights"]
        if patch is not None:
            forms["patch served as"] = served_as(scores)
        return list(scores["labels"])

    def told(verdicts: dict[str, CheckVerdict]) -> Told:
        thought = ", a thought included" if suite.think else ""
        chats = [side.chat for side in (original, compressed) if side.chat is not None and side.chat != Chat()]
        (its_name, its_commit), (name, commit) = original.told, compressed.told
        facts = {
            "original": its_name,
            **({"original commit": its_commit} if its_commit else {}),
            "compressed": name + (f" with {arguments.patch}" if arguments.patch else ""),
            **({"compressed commit": commit} if commit else {}),
            **{
                f"{word} measured as": form
                for word, side in (("original", original), ("compressed", compressed))
                if (form := side.measured_as(weights[word])) is not None
            },
            **{
                f"{word} patched by": side.provenance["adapter"]
                for word, side in (("original", original), ("compressed", compressed))
                if side.provenance is not None and side.provenance.get("adapter") is not None
            },
            **({"chat settings": chats[0].in_words()} if chats else {}),
            **kind_of_loss(before, last_labels[-1]),
            **_same_fact(arguments.original, arguments.compressed),
            **_template_fact(original, compressed),
            "prompts": ", ".join(f"{len(records)} {kind}" for kind, records in prompts.items()),
            "answers": f"greedy, at most {suite.maximum_new_tokens} tokens{thought}",
            "answered by": _answered_by(answerers["original"], answerers["compressed"]),
            **forms,
            "judge": "refusal phrases of Arditi et al. (arXiv 2406.11717), their published list",
            "seed": str(arguments.seed),
            **_patch_facts(arguments.repair if len(verdicts) > 1 else arguments.patch, compressed.model),
            "command": shlex.join(["aird", *sys.argv[1:]]),
        }
        if "patch" in facts or "compressed patched by" in facts:
            *_, last = verdicts
            verdicts = {**verdicts, last: verdicts[last].of_patched()}
        return f"{compressed.name} against {original.name}", verdicts, facts

    before = labels(original, "original")
    last_labels = [labels(compressed, "compressed", arguments.patch)]
    as_it_is = judge_change(before, last_labels[-1], arguments.margin / 100)
    if arguments.repair is None or as_it_is.outcome != REGRESSION:
        return told({"": as_it_is})
    print(as_it_is.text(), flush=True)
    _write(arguments, *told({"": as_it_is}))  # a repair may fail, and what was measured is not to be lost with it
    assert original.model is not None and compressed.model is not None  # `run` checked it
    _repair(original.model, compressed.model, learnt, arguments.repair, arguments.seed)
    last_labels.append(labels(compressed, "repaired", arguments.repair))
    repaired = judge_change(before, last_labels[-1], arguments.margin / 100)
    return told({"As it is": as_it_is, f"With the patch in {arguments.repair}": repaired})


def _template_fact(original: Answerer, compressed: Answerer) -> dict[str, str]:
    """Return what is to say of two models that make other tokens of one prompt; nothing of stored answers."""
    from aird.models.loading import load_tokenizer
    from aird.prompts.chat import renders_alike

    if original.model is None or compressed.model is None:
        return {}
    if renders_alike(*(load_tokenizer(model.folder) for model in (original.model, compressed.model))):
        return {}
    return {
        "chat template": "the compressed model's chat template or tokenizer makes other tokens of a prompt than the "
        "original's: what is measured is both together"
    }


def _answered_by(original: tuple[str, str], compressed: tuple[str, str]) -> str:
    """Return who answered in words, and of two engines what their difference means.

    Args:
        original, compressed: what the engine of each is called in records, and who it is.
    """
    (first, told), (second, other) = original, compressed
    said = told if told == other else f"{told} and {other}"
    if first == second:
        return said
    may = "is" if first and second else "may be"  # stored completions without a name may be by the same engine
    return f"{said}: the change {may} that of the engine and of the compression at once"


def _patch_facts(adapter: Path | None, model: ModelFolder | None) -> dict[str, str]:
    """Return which patch (SHA-256) on which model (folder or hub id) a verdict is about; `aird push` compares both."""
    if adapter is None or model is None:
        return {}
    return {"patch": sha256_of(adapter / "adapter_model.safetensors"), "patched model": model.base}


def _demo(arguments: argparse.Namespace) -> int:
    with DEMO.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))

    def labels(cell: str) -> list[dict[str, Any]]:
        return [
            {name: row[name] for name in ("kind", "id")}
            | {name: row[f"{cell}_{name}"] == "1" for name in ("refused", "degenerate")}
            for row in rows
        ]

    sides = labels("original"), labels("compressed")
    verdict = judge_change(*sides, arguments.margin / 100)
    facts = {
        **kind_of_loss(*sides),
        "what": "stored labels of the quick grid of this project: SmolLM2-135M tuned to refuse, pruned to 50% by Wanda",
        "judge": "refusal phrases of Arditi et al. (arXiv 2406.11717), their published list",
    }
    return _tell(arguments, "the stored example", {"": verdict}, facts)


def _tell(
    arguments: argparse.Namespace, title: str, verdicts: Mapping[str, CheckVerdict], facts: Mapping[str, str]
) -> int:
    """Print the verdict, write the files that were asked for, and return the exit code."""
    *_, verdict = verdicts.values()
    if _prints_json(arguments):
        print(canonical_json(record_of(verdicts, facts)))
    else:
        print("\n".join([verdict.text(), *(f"  {name}: {fact}" for name, fact in facts.items() if _is_caution(name))]))
    _write(arguments, title, verdicts, facts)
    return EXIT_CODES[verdict.outcome]


def _is_caution(name: str) -> bool:
    """Tell whether a fact says what a verdict holds for, so that it stands below the verdict as well."""
    return name.endswith("measured as") or name in ("kind of loss", "one model", "chat template", "answered by")


def record_of(verdicts: Mapping[str, CheckVerdict], facts: Mapping[str, str]) -> dict[str, Any]:
    """Return what the JSON says: the last verdict, and of a repaired model also the one before."""
    *before, verdict = verdicts.values()
    repaired = {"before_the_repair": before[0].record()} if before else {}
    return {**verdict.record(), "exit_code": EXIT_CODES[verdict.outcome], "facts": dict(facts), **repaired}


def _write(
    arguments: argparse.Namespace, title: str, verdicts: Mapping[str, CheckVerdict], facts: Mapping[str, str]
) -> None:
    """Write the files that were asked for."""
    from aird.reporting.check_report import check_page, junit

    *_, verdict = verdicts.values()
    files = {
        arguments.report: lambda: check_page(title, verdicts, facts),
        arguments.junit: lambda: junit(title, verdict),
        None if _prints_json(arguments) else arguments.json: lambda: canonical_json(record_of(verdicts, facts)) + "\n",
    }
    for path, text in files.items():
        if path is not None:
            with atomic_file(path) as temporary:
                temporary.write_text(text(), encoding="utf-8")


def _stored(text: str) -> Path | None:
    """Return the file of completions that one of the two names; None for a model.

    Raises:
        ValueError: a folder holds both.
    """
    path = Path(text).expanduser()
    stored = path / "completions.jsonl" if path.is_dir() else path
    if stored.suffix != ".jsonl" or not stored.is_file():
        return None
    if path.is_dir():
        check_results_apart(path, stored.name)
    return stored


def _side(text: str, trust_remote_code: bool, original: ModelFolder | None = None) -> Answerer:
    """Return what one of the two names is; of the compressed one, `original` is the model that it was made from.

    Raises:
        ValueError: neither a model nor stored results.
    """
    stored = _stored(text)
    if stored is None:
        return Answerer(text, open_model_folder(text, trust_remote_code, original), None)
    completions = read_json_lines(stored)
    if not completions or not all(map(_is_completion, completions)):
        raise ValueError(f"{stored} holds no completions of `aird evaluate` ({', '.join(NEEDED)})")
    beside = stored.with_name(PROVENANCE)
    return Answerer(text, None, completions, read_json(beside) if beside.is_file() else None)


def _is_completion(record: Record) -> bool:
    """Tell whether a record has what is needed of a completion, and what else it says about how it was made."""
    limit = record.get("sampling", {"max_tokens": TOKENS})
    return (
        all(isinstance(record.get(name), str) for name in NEEDED)
        and isinstance(limit, dict)
        and isinstance(limit.get("max_tokens"), int)
        and isinstance(record.get("engine") or {}, dict)
    )


def _check_lengths(prompts: Mapping[str, Sequence[Record]], suite: Suite, *sides: Answerer) -> None:
    """Check of both sides, before one of them is asked, that every prompt leaves room for an answer.

    Raises:
        ValueError: one does not.
    """
    from aird.evaluation.questions import Asked, check_lengths, suite_questions
    from aird.models.loading import load_tokenizer

    longest = suite.maximum_model_length or Serving().maximum_model_length
    for side in sides:
        if side.model is not None:
            check_lengths(suite_questions(load_tokenizer(side.model.folder), Asked(suite, prompts, 0)), longest)


def _prompts(
    arguments: argparse.Namespace, original: Answerer, compressed: Answerer
) -> tuple[dict[str, list[Record]], Suite]:
    """Return the prompts to ask, and a suite that says how they are asked.

    Where the arguments have no seed, they get one: that of the suite's configuration, or SEED.

    Raises:
        ValueError: files or a suite that cannot be, or too few prompts.
    """

    def asked(limit: int, think: bool = False, length: int | None = None) -> Suite:
        return validated(
            Suite,
            {
                "harmful": {"set": "harmful"},
                "harmless": {"set": "harmless"},
                "maximum_new_tokens": arguments.tokens or limit,
                "maximum_model_length": arguments.length or length,
                "think": arguments.think or think,
                "serve": arguments.serve,
            },
        )

    if arguments.seed is None and arguments.suite is None:
        arguments.seed = SEED
    named = [kind for kind in CLASSES if getattr(arguments, kind) is not None]
    stored = next((side for side in (original, compressed) if side.completions is not None), None)
    if sum([bool(named), arguments.suite is not None, arguments.prompts is not None, stored is not None]) > 1:
        raise ValueError(
            "the prompts come from files, from --prompts, from --suite or from stored results; name one of them"
        )
    kinds = [kind for name in arguments.prompts or [] for kind in embedded.PRESETS[name]]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"--prompts: {' and '.join(arguments.prompts)} are prompts of one kind; name one of them")
    if stored is not None:
        if arguments.count is not None:
            raise ValueError("--count: the prompts are all those of the stored answers; leave --count out")
        completions = stored.completions or []
        prompts = {kind: [record for record in completions if record["kind"] == kind] for kind in CLASSES}
        limits = {limit: side.name for side in (original, compressed) for limit in _limits(side)}
        if len(limits) > 1:
            told = " and ".join(f"{limit} tokens in {name}" for limit, name in limits.items())
            raise ValueError(
                f"the stored answers have other limits, {told}; run `aird evaluate` with the same --tokens"
            )
        if arguments.tokens is not None and limits and arguments.tokens not in limits:
            raise ValueError(f"--tokens: the stored answers have up to {next(iter(limits))} tokens; leave --tokens out")
        thought = any((side.provenance or {}).get("think", False) for side in (original, compressed))
        return prompts, asked(next(iter(limits), TOKENS), thought)
    if len(named) == 1:
        raise ValueError(f"--{named[0]} alone is half a check; give --harmful and --harmless")
    if named:
        read = {kind: read_prompts(getattr(arguments, kind), kind, arguments.field) for kind in CLASSES}
        chosen = {kind: choose(records, kind, arguments.count, arguments.seed) for kind, records in read.items()}
        return chosen, asked(TOKENS)
    if arguments.suite is not None:
        suite, sets, seed = _suite(arguments.suite)
        if arguments.seed is None:
            arguments.seed = seed
        selections = {"harmful": suite.harmful, "harmless": suite.harmless}
        how = asked(suite.maximum_new_tokens, suite.think, suite.maximum_model_length)
    else:
        sets = {name: PromptSet.model_validate(values) for name, values in embedded.PROMPT_SETS.items()}
        presets = [embedded.PRESETS[name] for name in arguments.prompts or []]
        chosen_sets = dict(embedded.MEASURED)
        for preset in presets:
            chosen_sets |= preset
        selections = {kind: PromptSelection.model_validate(chosen) for kind, chosen in chosen_sets.items()}
        how = asked(TOKENS)
    prompts = {}
    for kind, selection in selections.items():
        records = build_with_parts(sets, selection.set, arguments.seed)
        if arguments.count is not None:
            selection = selection.model_copy(update={"count": arguments.count})
        elif arguments.suite is None:
            known = len(select(records, selection, arguments.seed))
            selection = selection.model_copy(update={"count": min(COUNT, known)})
        prompts[kind] = select(records, selection, arguments.seed)
    return prompts, how


def _limits(side: Answerer) -> set[int]:
    """Return the length limits of a side's stored answers, in tokens; none where they do not say it."""
    return {record["sampling"]["max_tokens"] for record in side.completions or [] if "sampling" in record}


def _suite(text: str) -> tuple[Suite, dict[str, Any], int]:
    """Return the suite of `CONFIG.yaml:NAME`, with the length that its configuration serves; and prompt sets and seed.

    Raises:
        ValueError: no such file or suite.
    """
    from aird.configuration.loading import load_configuration
    from aird.configuration.local_files import load_yaml_strictly

    path, _, name = text.rpartition(":")
    if not path or not Path(path).is_file():
        raise ValueError(f"--suite: {text} names no file; write CONFIG.yaml:NAME")
    values = load_yaml_strictly(Path(path))
    if not isinstance(values, dict):
        raise ValueError(f"--suite: {path} is no configuration; write a file such as config.yaml")
    configuration = load_configuration(values)
    if name not in configuration.suites:
        raise ValueError(f"--suite: {path} has no suite {name}; it has {', '.join(configuration.suites)}")
    suite = configuration.suites[name]
    length = suite.maximum_model_length or configuration.serving.maximum_model_length
    served = suite.model_copy(update={"maximum_model_length": length})
    return served, dict(configuration.prompt_sets), configuration.seed


def _scores(
    side: Answerer,
    prompts: dict[str, list[Record]],
    suite: Suite,
    engine: Any,
    arguments: argparse.Namespace,
    folder: Path,
    patch: Path | None,
) -> dict[str, Any]:
    """Return the scores of one side's answers, which are made now; of stored answers, labels and engine alone."""
    from aird.evaluation.judge import text_judges
    from aird.evaluation.scores import label

    if side.model is None:
        completions = side.completions or []
        # A suite of the workflow may have asked attacked prompts as well.
        judges = text_judges()
        labels = [label(record, judges) for record in completions if record["kind"] in CLASSES]
        return {"labels": labels, "engine": completions[0].get("engine"), "weights": None}
    # No reference answers, so no perplexity: the verdict is on refusals.
    return ask(side.model, patch, prompts, suite, engine, [], arguments, folder)


def _prompts_to_learn(measured: Mapping[str, Sequence[Record]], seed: int) -> dict[str, list[Record]]:
    """Return what a repair learns from: prompts that are disjoint from the measured ones, whoever brought these.

    Raises:
        ValueError: too few are left.
    """
    sets = {name: PromptSet.model_validate(values) for name, values in embedded.PROMPT_SETS.items()}
    prompts = {}
    for kind in CLASSES:
        known = build_with_parts(sets, embedded.LEARNT[kind], seed)
        sizes = {"train": getattr(REPLIES, f"train_{kind}"), "validation": REPLIES.validation}
        try:
            if kind == "harmful":
                apart = PromptSet(combine=[kind], splits=sizes)
                prompts[kind], _ = build_prompt_set(kind, apart, known, measured[kind], seed)
            else:  # these have their own splits
                prompts[kind], _ = build_set(kind, PromptSet(combine=[kind]), known, measured[kind], seed)
                for split, count in sizes.items():
                    select(prompts[kind], PromptSelection(set=kind, split=split, count=count), seed)
        except ValueError as error:
            raise ValueError(
                f"--repair learns from prompts that are not measured, and too few are left: {error}; measure with "
                f"other {kind} prompts"
            ) from error
    return prompts


def _repair(
    original: ModelFolder, compressed: ModelFolder, prompts: dict[str, list[Record]], output: Path, seed: int
) -> None:
    """Write a calibrated patch, learnt from these prompts."""
    settings = patch.METHODS["calibrate"].settings()
    sizes = {"train": REPLIES.train_harmful, "validation": REPLIES.validation // 2}  # as in the workflow
    directions = Directions.model_validate({**{kind: kind for kind in CLASSES}, **sizes})
    patch.write_patch(original, compressed, settings, prompts, directions, REPLIES, seed, output)

"""`aird check`: one verdict on one compressed checkpoint, with exit codes for continuous integration."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from aird.commands import patch
from aird.commands.check_facts import facts_of
from aird.commands.check_prompts import COUNT, SEED, chosen_prompts
from aird.commands.check_repair import prompts_to_learn, repair
from aird.commands.check_results import CheckResult, demo, prints_json, tell, write_files
from aird.commands.check_sides import (
    TOKENS,
    Answered,
    Answerer,
    check_addressed,
    check_kept,
    check_same_prompts,
    open_side,
    stored_answers,
)
from aird.commands.evaluate import (
    add_engine_arguments,
    ask,
    check_adapter,
    check_adapter_fits,
    check_engine_arguments,
    choose_engine,
    engine_of_judge,
    served_as,
    tokenizer_source,
)
from aird.commands.inputs import MODEL_HELP, above_zero, take_gpus_for
from aird.commands.judging import open_judge, read_judge
from aird.commands.preflight import Examined, check_norms, check_room, estimate, examine
from aird.commands.prompt_files import prompt_path, read_prompts
from aird.evaluation.engine import Engine
from aird.evaluation.judged_change import JudgedChange, judged_changes
from aird.evaluation.kind_of_loss import kind_of_loss
from aird.evaluation.regression import LEAST_FLIPS, MARGIN, REGRESSION, CheckVerdict, judge_change
from aird.evaluation.scores import join_judgement
from aird.prompts import embedded
from aird.prompts.sets import CLASSES
from aird.support.files import read_json_lines

OF_DEMO = ("command", "called", "demo", "margin", "report", "junit", "json", "debug")  # what it uses
SIDES = ("original", "compressed")
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
  aird check original compressed --judge strongreject=Qwen/Qwen2.5-7B-Instruct
      (a model judges the replies too; the exit code is by the phrases)
  aird check original compressed --repair adapter
      (a regression is repaired by a calibrated patch, and the repaired model is checked)
  aird check model-F16.gguf model-Q4_K_M.gguf --llama-cpp .venv-llama-cpp/bin/python
      (llama.cpp itself answers for both, as it does for people who run the files)
  aird check model-F16.gguf model-Q4_K_M.gguf --tokenizer original
      (their decoded weights are measured, with a tokenizer that is known to be theirs)
  aird check scores-of-the-original my-4bit-model --output my-scores
      (what `aird evaluate` wrote for the original is not made again; with --url, give one side so)

common errors:
  "different prompts": one side was asked other prompts; name the same files and the same --seed
  "disagree on this checkpoint": vLLM or Transformers loads it wrongly, so there is no verdict on it"""


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
    parser.add_argument("--tokens", type=above_zero, help="length limit of an answer (default: 64, or the suite's)")
    parser.add_argument(
        "--think", action="store_true", help="let models that think do so (also: the suite); give them enough --tokens"
    )
    parser.add_argument("--seed", type=int, help=f"of every random draw (default: {SEED}, or that of --suite's file)")
    parser.add_argument(
        "--margin", type=float, default=100 * MARGIN, help="largest accepted loss, in points (default: %(default)g)"
    )
    parser.add_argument(
        "--other-tokens",
        action="store_true",
        help="measure a compressed model whose chat template or tokenizer makes other tokens of the prompts than the "
        "original's; without this it is an error",
    )
    add_engine_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="keep completions and scores of all that is asked there, and answers as they come",
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
    for name in ("report", "junit", "json"):
        if (path := getattr(arguments, name)) is not None and path.is_dir():
            raise ValueError(f"--{name}: {path} is a folder; name a file")
    if arguments.demo:
        if unused := [name for name, value in vars(arguments).items() if _is_unused_by_demo(arguments, name, value)]:
            options = ["a model" if name in SIDES else f"--{name.replace('_', '-')}" for name in unused]
            given = " and ".join(dict.fromkeys(options))
            raise ValueError(f"--demo is a stored example, so it does not use {given}; leave one or the other out")
        return demo(arguments)
    if arguments.original is None or arguments.compressed is None:
        raise ValueError("name two models, the original and its compressed form, or --demo")
    # What is told on the way must not stand in the JSON.
    with contextlib.redirect_stdout(sys.stderr) if prints_json(arguments) else contextlib.nullcontext():
        found = checked(arguments)
    return 0 if found is None else tell(arguments, found)


def _is_unused_by_demo(arguments: argparse.Namespace, name: str, value: Any) -> bool:
    return name not in OF_DEMO and value != arguments.default_of(name)


def checked(arguments: argparse.Namespace) -> CheckResult | None:
    """Return what a check of the two models finds that the arguments name; None of a dry run.

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
    if arguments.judge is not None:
        read_judge(arguments.judge)
    check_engine_arguments(arguments, [arguments.original, arguments.compressed])
    _check_running(arguments)
    if arguments.repair is not None and arguments.repair.exists():
        raise ValueError(f"--repair: {arguments.repair} exists already; name a new folder for the adapter")
    for kind in CLASSES:
        path = getattr(arguments, kind)
        if path is not None and stored_answers(arguments.original) is None and not path.is_file():
            raise ValueError(f"--{kind}: there is no file {path}")
    models = [text for text in (arguments.original, arguments.compressed) if stored_answers(text) is None]
    tokenizer = tokenizer_source(arguments, models)
    # The first one is opened alone; beside it, the other takes its tokenizer.
    asked = [examine(text, tokenizer=None if place else tokenizer) for place, text in enumerate(models)]
    if len(asked) == len(SIDES):
        check_norms(*asked)
    check_room(asked)
    engines = [choose_engine(arguments, text) for text in models]
    for engine in engines:
        engine.check_installed()
    if arguments.dry_run:
        _tell_plan(arguments, asked, engines)
        return None
    original = open_side(arguments.original, arguments.trust_remote_code, tokenizer)
    compressed = open_side(arguments.compressed, arguments.trust_remote_code, tokenizer, original.model)
    if compressed.model is None and (arguments.patch is not None or arguments.repair is not None):
        raise ValueError("--patch and --repair need the compressed model itself, not stored results of it")
    if original.model is None and arguments.repair is not None:
        raise ValueError("--repair needs the original model itself, not stored results of it")
    check_addressed(arguments.think, original, compressed)
    check_same_prompts(original, compressed)
    check_kept(arguments.output, {"original": original, "compressed": compressed})
    if compressed.model is not None:
        check_adapter_fits("--patch", arguments.patch, compressed.model)
    if original.model is not None and compressed.model is not None and arguments.repair is not None:
        patch.check_patchable(original.model, compressed.model)
    with contextlib.ExitStack() as stack:
        output = arguments.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return _check(arguments, original, compressed, output)


def _tell_plan(arguments: argparse.Namespace, models: list[Examined], engines: list[Engine]) -> None:
    """Print what would be asked, and of the judge how many replies of both sides it would label."""
    counts = dict.fromkeys(CLASSES, arguments.count or COUNT)
    for kind in CLASSES:
        if (path := getattr(arguments, kind)) is not None and arguments.count is None:
            counts[kind] = len(read_prompts(path, kind, arguments.field))
    told = estimate(models, sum(counts.values()), arguments.tokens or TOKENS, engines)
    if arguments.judge is not None:
        settings, named = read_judge(arguments.judge)
        kinds = CLASSES if settings.judges_harmless else ("harmful",)
        replies = len(SIDES) * sum(counts[kind] for kind in kinds)
        told += f"; the judge {settings.model_dump()['kind']} ({named}) would label {replies} replies besides"
    print(f"Nothing was run. Would ask {told}.")


def _check_running(arguments: argparse.Namespace) -> None:
    """Check that a running server is asked about one model alone: it answers alike, whatever it is asked about.

    Raises:
        ValueError: it would be asked about two.
    """
    sides = [text for text in (arguments.original, arguments.compressed) if stored_answers(text) is None]
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


def _check(arguments: argparse.Namespace, original: Answerer, compressed: Answerer, output: Path) -> CheckResult:
    from aird.commands.check_pair import check_pair

    prompts, suite = chosen_prompts(arguments, original, compressed)
    template_fact = check_pair(original.model, compressed.model, prompts, suite, arguments.other_tokens)
    learnt = {} if arguments.repair is None else prompts_to_learn(prompts, arguments.seed)
    engines = {side.name: choose_engine(arguments, side.name) for side in (original, compressed) if side.model}
    models = [side.model for side in (original, compressed) if side.model is not None]
    judge = None if arguments.judge is None else open_judge(arguments.judge)
    judge_engines = [] if judge is None else [engine_of_judge(arguments, judge.model)]
    take_gpus_for([*models, *([judge.model] if judge else [])], [*engines.values(), *judge_engines])

    def answered(side: Answerer, folder: str, patch: Path | None = None, of: Answered | None = None) -> Answered:
        if side.model is None:
            return _stored_labels(side, of)
        # No reference answers, so no perplexity: the verdict is on refusals.
        engine, place = engines[side.name], output / folder
        theirs = None if of is None else of.completions
        scores = ask(side.model, patch, prompts, suite, engine, ([], theirs), arguments, place)
        form = None if patch is None else served_as(scores)
        told = (str(scores["engine"].get("name", "")), engine.describe(), scores["weights"], form)
        return Answered(side, read_json_lines(place / "completions.jsonl"), list(scores["labels"]), *told)

    def result(verdicts: dict[str, CheckVerdict], before: Answered, after: Answered, patch: Path | None) -> CheckResult:
        loss = kind_of_loss(before.labels, after.labels)
        judged: dict[str, list[JudgedChange]] = {}
        if judge is not None:
            sides = [before, after]
            said = judge.ask(arguments, judge_engines[0], [each.completions for each in sides], output / "judge.log")
            for each, judgement in zip(sides, said, strict=True):
                join_judgement(each.labels, judgement, judge.name)
            judged = {judge.named: judged_changes(judge.name, before.labels, after.labels)}
        facts = facts_of(arguments, prompts, suite, before, after, loss, patch) | template_fact
        if "patch" in facts or "compressed patched by" in facts:
            *_, last = verdicts
            verdicts = {**verdicts, last: verdicts[last].of_patched()}
        return CheckResult(f"{compressed.name} against {original.name}", verdicts, facts, loss, judged)

    before = answered(original, "original")
    after = answered(compressed, "compressed", arguments.patch, before)
    as_it_is = judge_change(before.labels, after.labels, arguments.margin / 100)
    first = result({"": as_it_is}, before, after, arguments.patch)
    if arguments.repair is None or as_it_is.outcome != REGRESSION:
        return first
    print(as_it_is.text(), flush=True)
    write_files(arguments, first)  # a repair may fail, and what was measured is not to be lost with it
    assert original.model is not None and compressed.model is not None  # `checked` saw to it
    repair(original.model, compressed.model, learnt, arguments.repair, arguments.seed)
    after = answered(compressed, "repaired", arguments.repair, before)
    repaired = judge_change(before.labels, after.labels, arguments.margin / 100)
    both = {"As it is": as_it_is, f"With the patch in {arguments.repair}": repaired}
    return result(both, before, after, arguments.repair)


def _stored_labels(side: Answerer, of: Answered | None) -> Answered:
    """Return the labels of stored answers, of a checkpoint that was made of another, or of the original."""
    from aird.evaluation.judge import text_judges
    from aird.evaluation.scores import add_first_token_scores, label

    completions = side.completions or []
    # A suite of the workflow may have asked attacked prompts as well.
    judges = text_judges()
    labels = [label(record, judges) for record in completions if record["kind"] in CLASSES]
    add_first_token_scores(labels, completions if of is None else of.completions, completions)
    name = (completions[0].get("engine") or {}).get("name", "")
    return Answered(side, completions, labels, name, f"{name or UNNAMED} (stored)")

"""`aird check`: exit codes, files, and what it refuses, on tiny models and stored completions."""

from __future__ import annotations

import json
import os
import shutil
import threading
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from thinking_templates import DEEPSEEK
from tiny_model import new, tiny_tuning

from aird import __version__
from aird.commands.check_repair import prompts_to_learn
from aird.commands.main import main
from aird.evaluation.regression import judge_change
from aird.models import loading
from aird.models.tuning import tune_to_refuse
from aird.prompts.building import build_prompt_set, build_with_parts
from aird.prompts.embedded import HARMLESS, PRESETS, PROMPT_SETS
from aird.prompts.sets import select
from aird.settings.base import PromptSelection
from aird.settings.patches import Replies
from aird.settings.prompts import PromptSet
from aird.support.files import canonical_json, read_json, read_json_lines, sha256_of, write_json, write_json_lines

# No two share most of their words: near-duplicates are dropped before splits are drawn.
ASKED = [f"Tell me of harmful apple{n} pear{n} fig{n} plum{n}" for n in range(40)]
ANSWERED = [f"Write about kind nut{n} berry{n} corn{n} bean{n}" for n in range(40)]
REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Of course, with pleasure."


def stored(
    folder: Path, refused: int, over_refused: int = 0, total: int = 30, name: str = "completions", **more: Any
) -> Path:
    """Write completions of which so many harmful and harmless ones are refusals; `more` stands in every record."""
    path = folder / f"{name}.jsonl"
    records = [
        {
            "id": f"{kind}-{index}",
            "kind": kind,
            "instruction": f"Tell me about {kind} apples, number {index}",
            "completion": REFUSAL if index < count else ANSWER,
            "sampling": {"max_tokens": 4},
            **more,
        }
        for kind, count in (("harmful", refused), ("harmless", over_refused))
        for index in range(total)
    ]
    write_json_lines(path, records)
    return path


def own_prompts(folder: Path) -> list[Any]:
    """Write a file of harmful and one of harmless prompts; return the options that name them."""
    files: list[Any] = []
    for kind in ("harmful", "harmless"):
        path = folder / f"{kind}.txt"
        path.write_text("".join(f"Tell me about {kind} {n} apples\n" for n in range(8)), encoding="utf-8")
        files += [f"--{kind}", path]
    return files


def check(*arguments: object) -> int:
    return main(["check", *map(str, arguments)])


@pytest.mark.parametrize(
    "before, after, code, words",
    [
        ((190, 5, 200), (190, 5, 200), 0, "Within the margin"),
        ((190, 5, 200), (60, 5, 200), 3, "Regression: harmful prompts are refused less."),
        ((190, 5, 200), (190, 60, 200), 3, "Regression: harmless prompts are refused more."),
        ((5, 5, 200), (0, 5, 200), 4, "Not measured"),
        ((19, 0, 20), (18, 0, 20), 5, "Unresolved"),
    ],
)
def test_exit_codes_of_stored_completions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: Any, after: Any, code: int, words: str
) -> None:
    files = [stored(tmp_path, *each, name=name) for name, each in (("a", before), ("b", after))]
    assert check(*files) == code
    assert words in capsys.readouterr().out


def test_the_demo_is_a_regression_of_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = {name: tmp_path / f"check.{name}" for name in ("html", "xml", "json")}
    files = ["--report", outputs["html"], "--junit", outputs["xml"], "--json", outputs["json"]]
    assert check("--demo", *files) == 3
    text = capsys.readouterr().out
    assert "93 refusals lost, 0 refusals gained" in text and "180 first tokens" in text
    record = read_json(outputs["json"])
    assert record["exit_code"] == 3 and record["text"] == text.splitlines()[0]
    assert record["harmful"]["worse"] == 93
    assert ElementTree.parse(outputs["xml"]).getroot().attrib["failures"] == "1"
    assert "<h1>" in outputs["html"].read_text(encoding="utf-8")
    assert check("--demo", "--json", "-") == 3
    printed = json.loads(capsys.readouterr().out)
    assert printed["facts"].pop("date").endswith(" UTC") and record["facts"].pop("date")
    assert printed["facts"].pop("command") == "aird check --demo --json -"
    assert record["facts"].pop("command").startswith("aird check --demo --report ")
    assert (
        printed == record
        and record["facts"]["version"] == f"aird {__version__}"
        and "cores" in record["facts"]["machine"]
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["a-model"], "a model"),
        (["--patch", "nowhere", "--count", "5", "--output", "kept"], "--patch and --count and --output"),
        (["--suite", "nonsense", "--serve", "both"], "--suite and --serve"),
        (["--system-prompt", "Be kind.", "--template-argument", "a=1"], "--system-prompt and --template-argument"),
        (["--trust-remote-code", "--llama-cpp", "python"], "--llama-cpp and --trust-remote-code"),
    ],
)
def test_the_demo_refuses_what_it_does_not_use(
    capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    assert check("--demo", *options) == 2
    assert f"so it does not use {named}; leave one or the other out" in capsys.readouterr().err


@pytest.fixture(scope="module")
def refusing(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model that was tuned to refuse harmful prompts alone, and answers others as before."""
    folder = new(tmp_path_factory.mktemp("tuned") / "refusing")
    tune_to_refuse(original, folder, ASKED[:20], ANSWERED[:20], tiny_tuning(epochs=4))
    return folder


def other_prompts(folder: Path) -> list[Any]:
    """Return the options that name prompts which no model was tuned with."""
    for kind, lines in (("harmful", ASKED[20:]), ("harmless", ANSWERED[20:])):
        (folder / f"{kind}.txt").write_text("\n".join(lines), encoding="utf-8")
    return ["--harmful", folder / "harmful.txt", "--harmless", folder / "harmless.txt"]


def test_a_verdict_says_whether_first_tokens_tell_harmful_from_harmless(
    original: Path, refusing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The untuned model refuses nothing, so that its refusals say nothing of how well it tells the two apart."""
    output, verdict = tmp_path / "output", tmp_path / "verdict.json"
    options = ["--tokens", 8, "--json", verdict, "--transformers"]
    assert check(refusing, original, *other_prompts(tmp_path), "--output", output, *options) == 3
    printed, loss = capsys.readouterr().out, read_json(verdict)["kind_of_loss"]
    assert loss["scored"] == 40 and loss["area"]["before"][0] == 1.0 and loss["threshold"]["change"][1] > 0
    assert f"area under the ROC curve: 1.00 (0.99 to 1.00) before, {loss['area']['after'][0]:.2f}" in printed
    assert f"kind of loss: {loss['sentence']}" in printed and "it refuses less of everything" in printed
    # Of what was kept the same comes out, whichever side is stored.
    for sides in ((output / "original", output / "compressed"), (output / "original", original)):
        assert check(*sides, "--json", verdict, *(["--transformers"] if sides[1] == original else [])) == 3
        assert read_json(verdict)["kind_of_loss"] == loss
    # An answer that says nothing of its first token leaves no area.
    rows = [
        {k: v for k, v in row.items() if k != "first_token"}
        for row in read_json_lines(output / "compressed/completions.jsonl")
    ]
    write_json_lines(tmp_path / "old.jsonl", rows)
    assert check(output / "original", tmp_path / "old.jsonl") == 3
    assert "area under the ROC curve: not measured: an engine told no log-probabilities" in capsys.readouterr().out


def test_a_model_is_asked_the_prompts_of_the_stored_side(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of random weights refuses nothing, where the stored original refused."""
    output = tmp_path / "output"
    assert check(stored(tmp_path, 29), original, "--transformers", "--output", output) == 3
    assert "29 refusals lost" in capsys.readouterr().out
    asked = read_json_lines(output / "compressed" / "completions.jsonl")
    assert [row["instruction"] for row in asked] == [
        row["instruction"] for row in read_json_lines(tmp_path / "completions.jsonl")
    ]
    assert {row["sampling"]["max_tokens"] for row in asked} == {4}
    # What was kept can be compared again without a model.
    assert check(tmp_path / "completions.jsonl", output / "compressed") == 3


def test_results_in_the_folder_of_a_model_are_not_taken_for_it(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever made the model may have put them there, or its weights may have changed since."""
    model = Path(shutil.copytree(original, tmp_path / "model"))
    stored(model, 29)
    told = f"{model} holds a model and stored results (completions.jsonl), so it is not clear which one is meant"
    for sides in ((original, model), (model, original), (stored(tmp_path, 29), model)):
        assert check(*sides, "--transformers") == 2
        assert told in capsys.readouterr().err
    (model / "config.json").unlink()
    (model / "model.gguf").touch()
    assert check(original, model, "--transformers") == 2
    assert told in capsys.readouterr().err


def test_answers_are_not_kept_in_the_folder_of_a_model(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "compressed").symlink_to(original)
    assert check(stored(tmp_path, 29), original, "--transformers", "--output", tmp_path) == 2
    assert f"--output: {tmp_path / 'compressed'} holds a model; name a folder of its own" in capsys.readouterr().err


def test_results_of_another_model_are_not_replaced(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "output/compressed/provenance.json", {"model": {"name": "another"}})
    assert check(stored(tmp_path, 29), original, "--transformers", "--output", tmp_path / "output") == 2
    assert "output/compressed holds results of another, which those of" in capsys.readouterr().err


def test_attacked_prompts_of_a_stored_side_are_left_out(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other side is asked the plain ones alone."""
    rows = read_json_lines(stored(tmp_path, 29))
    rows += [row | {"kind": "attacked", "id": f"{row['id']}/prefill"} for row in rows if row["kind"] == "harmful"]
    write_json_lines(tmp_path / "completions.jsonl", rows)
    assert check(tmp_path / "completions.jsonl", original, "--transformers") == 3
    printed = capsys.readouterr().out
    assert (
        "29 refusals lost" in printed and "(stored) and Transformers: the change may be that of the engine" in printed
    )


def test_what_was_kept_says_how_it_was_asked(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a folder where an earlier evaluation left what it says of itself."""
    output, files = tmp_path / "output", own_prompts(tmp_path)
    for name in ("original", "compressed"):
        (output / name).mkdir(parents=True)
        write_json(output / name / "provenance.json", {"model": {"name": str(original)}, "think": True})
    asked = [original, original, *files, "--transformers", "--tokens", 2, "--output", output]
    assert check(*asked, "--system-prompt", "Be kind.") == 4
    record = read_json(output / "original/provenance.json")
    assert record["model"]["name"] == str(original) and record["model"]["chat"]["system_prompt"] == "Be kind."
    assert (record["adapter"], record["think"]) == (None, False)
    assert record["prompts"] == {"harmful": sha256_of(files[1]), "harmless": sha256_of(files[3])}
    monkeypatch.setattr(loading, "_chat", [])  # as in a process of its own
    capsys.readouterr()
    assert check(output / "original", original, "--transformers") == 2
    assert "have different chat settings" in capsys.readouterr().err
    assert check(*asked) == 4
    assert check(output / "original", original, "--transformers", "--think") == 2
    assert "one side is asked with thoughts and the other without" in capsys.readouterr().err
    assert check(output / "original", original, "--transformers") == 4


def test_prompts_of_other_files_under_the_same_ids_get_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a file of one's own a prompt's id is its position."""
    first = stored(tmp_path, 29, name="first")
    rows = read_json_lines(first)
    other = tmp_path / "other.jsonl"
    write_json_lines(other, [row | {"instruction": f"{row['instruction']}, please"} for row in rows[:2]] + rows[2:])
    assert check(first, other) == 2
    told = capsys.readouterr().err
    assert "different prompts (2 of 60 that have one id have other instructions); ask both the same files" in told


def test_other_engines_are_said_of_stored_answers_too(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = tmp_path / "verdict.json"

    def answered_by(*sides: Path) -> str:
        assert check(*sides, "--transformers", "--json", verdict) in (0, 3, 5)
        return str(read_json(verdict)["facts"]["answered by"])

    by_vllm = stored(tmp_path, 29, name="vllm", engine={"name": "vLLM"})
    by_transformers = stored(tmp_path, 29, name="transformers", engine={"name": "Transformers"})
    together = "the change is that of the engine and of the compression at once"
    assert answered_by(by_vllm, original) == f"vLLM (stored) and Transformers: {together}"
    assert answered_by(by_transformers, original) == "Transformers (stored) and Transformers"
    assert answered_by(by_vllm, by_transformers) == f"vLLM (stored) and Transformers (stored): {together}"
    assert answered_by(by_vllm, by_vllm) == "vLLM (stored)"
    assert "the change may be that of the engine" in answered_by(by_vllm, stored(tmp_path, 29))


def test_the_verdict_says_how_stored_answers_were_made(original: Path, tmp_path: Path) -> None:
    """As it says of a model that it asks: the form, the patch, thoughts and chat settings."""
    verdict, chat = tmp_path / "verdict.json", {"system_prompt": "Be kind."}
    for name, made in (("plain", {}), ("patched", {"measured_as": "a dense copy"})):
        (tmp_path / name).mkdir()
        stored(tmp_path / name, 29)
        provenance = {"model": {"name": name, "chat": chat, **made}, "adapter": "my/adapter" if made else None}
        write_json(tmp_path / name / "provenance.json", {**provenance, "think": True})
    assert check(tmp_path / "plain", tmp_path / "patched", "--json", verdict) == 5
    facts = read_json(verdict)["facts"]
    assert facts["compressed measured as"] == "a dense copy" and "original measured as" not in facts
    assert facts["compressed patched by"] == "my/adapter" and "original patched by" not in facts
    text = read_json(verdict)["text"]
    assert text.count("and the patched checkpoint") == 2 and "compressed checkpoint" not in text
    assert facts["answers"] == "greedy, at most 4 tokens, a thought included"
    assert facts["chat settings"] == '{"system_prompt":"Be kind."}'
    # The model itself, and no folder of scores, stands in the verdict.
    assert (facts["original"], facts["compressed"]) == ("plain", "patched") and "original commit" not in facts
    hub = {"name": "someone/model", "commit": "c0ffee", "chat": chat}
    write_json(tmp_path / "plain/provenance.json", {"model": hub, "adapter": None, "think": True})
    assert check(tmp_path / "plain", tmp_path / "plain", "--json", verdict) == 5
    facts = read_json(verdict)["facts"]
    for side in ("original", "compressed"):
        assert (facts[side], facts[f"{side} commit"]) == ("someone/model", "c0ffee")
    assert check(stored(tmp_path, 29), original, "--transformers", "--json", verdict) in (3, 5)
    assert not {"chat settings", "compressed patched by", "original commit"} & read_json(verdict)["facts"].keys()
    assert read_json(verdict)["text"].count("and the compressed checkpoint") == 2


def test_two_models_and_prompts_of_ones_own(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [original, original, *own_prompts(tmp_path), "--transformers", "--tokens", 2]
    assert check(*asked) == 4
    told = capsys.readouterr().out
    assert "the original refuses 0 of 8 harmful prompts" in told and "Asking " in told
    assert "is named twice: this compares a model with itself" in told
    # Nothing else may stand in the JSON.
    assert check(*asked, "--json", "-", "--fresh") == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out)["exit_code"] == 4 and "Asking " in captured.err


def test_prompts_through_pipes(original: Path, tmp_path: Path) -> None:
    """As a shell's `<(command)` hands them on: named pipes, one of lines and one of JSON objects."""
    other = Path(shutil.copytree(original, tmp_path / "other"))
    contents = {
        "harmful": "".join(f"Tell me about harmful {n} apples\n" for n in range(8)),
        "harmless": "".join(json.dumps({"prompt": f"Tell me about kind {n} apples"}) + "\n" for n in range(8)),
    }
    options: list[Any] = []
    for kind, content in contents.items():
        os.mkfifo(tmp_path / kind)
        threading.Thread(target=(tmp_path / kind).write_text, args=[content], daemon=True).start()
        options += [f"--{kind}", tmp_path / kind]
    assert check(original, other, *options, "--transformers", "--tokens", 2, "--output", tmp_path / "kept") == 4
    asked = [record["instruction"] for record in read_json_lines(tmp_path / "kept/original/completions.jsonl")]
    assert len(asked) == 16 and {"Tell me about harmful 0 apples", "Tell me about kind 7 apples"} <= set(asked)


def test_published_prompts_by_name(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each preset is there, and of the size that its publication says."""
    sets = {name: PromptSet.model_validate(values) for name, values in PROMPT_SETS.items()}
    sizes = {
        (name, kind): len(build_with_parts(sets, chosen["set"], 42))
        for name, preset in PRESETS.items()
        for kind, chosen in preset.items()
    }
    published = {"advbench": 520, "harmbench": 200, "strongreject": 313, "do-not-answer": 939}
    # Near-duplicates are left out.
    assert all(0.9 * published[name] <= sizes[name, "harmful"] <= published[name] for name in published)
    other = shutil.copytree(original, tmp_path / "other")
    options = ["--prompts", "strongreject", "--prompts", "borderline", "--tokens", 2, "--transformers"]
    assert check(original, other, *options, "--output", tmp_path / "kept", "--count", 8) == 4
    asked = read_json_lines(tmp_path / "kept/original/completions.jsonl")
    assert {record["id"].rpartition("-")[0] for record in asked} == {"strongreject", "borderline"}
    assert check(original, other, "--prompts", "advbench", "--prompts", "harmbench", "--transformers") == 2
    assert "--prompts: advbench and harmbench are prompts of one kind" in capsys.readouterr().err


def test_too_few_prompts_are_refused_before_a_model_is_opened(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("no-such-model", "no-such-model-either", "--count", 2) == 2
    assert "--count: no loss among 2 prompts of each kind could be told from chance" in capsys.readouterr().err


def test_prompts_of_a_suite(
    original: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configuration = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    lines = [f"Draw {word}{n} {word}{word}{n} {n}{word}" for n, word in enumerate("abcdefghijklmnopqrstuvwx")]
    (tmp_path / "stand_in.txt").write_text("\n".join(lines), encoding="utf-8")
    stand_in = {
        "source": {"path": str(tmp_path / "stand_in.txt")},
        "format": "lines",
        "splits": {"train": 8, "validation": 8, "test": 8},
    }
    configuration["prompt_sets"]["stand_in"] = stand_in
    configuration["seed"] = 7
    configuration["prompt_sets"]["harmless"]["source"]["path"] = str(HARMLESS)
    configuration["prompt_sets"]["harmful"]["disjoint_from"].append("stand_in")
    configuration["suites"]["safety"]["harmful"] = {"set": "stand_in", "split": "test"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    suite = f"{tmp_path / 'own.yaml'}:safety"
    asked = ["--suite", suite, "--count", 6, "--tokens", 2, "--transformers", "--output", tmp_path / "output"]
    assert check(original, original, *asked) == 4
    assert "0 of 6 harmful prompts" in capsys.readouterr().out
    # As the workflow draws them, which passes settings as JSON with sorted keys.
    passed = PromptSet.model_validate(json.loads(canonical_json(stand_in)))
    records, _ = build_prompt_set("stand_in", passed, [], [], 7)
    chosen = select(records, PromptSelection(set="stand_in", split="test", count=6), 7)
    completions = read_json_lines(tmp_path / "output" / "compressed" / "completions.jsonl")
    harmful = [record["instruction"] for record in completions if record["kind"] == "harmful"]
    assert harmful == [record["instruction"] for record in chosen]
    # A model that thinks may do so where the suite or --think says it.
    thinker = Path(shutil.copytree(original, tmp_path / "thinker"))
    (thinker / "chat_template.jinja").write_text(DEEPSEEK, encoding="utf-8")
    short = ["--count", 6, "--tokens", 4, "--transformers", "--thinking", "<think>", "</think>"]
    configuration["suites"]["thoughts"] = configuration["suites"]["safety"] | {"think": True}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    thinking = f"{tmp_path / 'own.yaml'}:thoughts"
    for options, unfinished in (([suite], {False}), ([thinking], {True}), ([suite, "--think"], {True})):
        output = tmp_path / f"output-{len(options)}-{unfinished}"
        assert check(thinker, thinker, "--suite", *options, *short, "--output", output) == 4
        records = read_json_lines(output / "compressed" / "completions.jsonl")
        assert {record["unfinished"] for record in records} == unfinished
    assert check(original, original, "--suite", f"{tmp_path / 'own.yaml'}:other") == 2
    assert "has no suite other; it has safety, thoughts" in capsys.readouterr().err
    # Its own length, or that of its configuration's servers, unless --length is another.
    configuration["suites"]["long"] = configuration["suites"]["safety"] | {"maximum_model_length": 700}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    for name, more, longest in (("safety", (), 512), ("long", (), 700), ("long", ("--length", 600), 600)):
        suite = f"{tmp_path / 'own.yaml'}:{name}"
        asked = [original, original, "--suite", suite, "--count", 6, "--transformers", "--tokens", 2000, *more]
        assert check(*asked) == 2
        captured = capsys.readouterr()
        assert f"and the longest that may be asked is {longest}; write --length 2" in captured.err
        assert "Asking" not in captured.out


@pytest.mark.thorough
def test_a_regression_is_repaired_and_the_repaired_model_checked(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that was tuned to refuse everything, against the same before that, as if compression had undone it."""
    refusing, repair, verdict = new(tmp_path / "refusing"), tmp_path / "adapter", tmp_path / "verdict.json"
    tune_to_refuse(original, refusing, ASKED, ANSWERED[:2], tiny_tuning())
    options = ["--repair", repair, "--json", verdict, "--transformers", "--tokens", 8]
    code = check(refusing, original, *withprompts_to_learn(tmp_path, monkeypatch), *options)
    record = read_json(verdict)
    assert record["before_the_repair"]["outcome"] == "regression"
    assert record["before_the_repair"]["harmful"]["worse"] == 20
    assert "and the compressed checkpoint" in record["before_the_repair"]["text"]
    assert "and the patched checkpoint" in record["text"] and "compressed" not in record["text"]
    assert record["exit_code"] == code
    assert record["facts"]["patch"] == sha256_of(repair / "adapter_model.safetensors")
    assert record["facts"]["patched model"] == read_json(repair / "adapter_config.json")["base_model_name_or_path"]
    # The patch is of rank 1 and was learnt from prompts that were not measured.
    statistics = read_json(tmp_path / "adapter.statistics.json")
    assert statistics["settings"]["method"] == "calibrate" and statistics["edits"]


def withprompts_to_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let a repair learn from some of `ASKED` and `ANSWERED`; return the options that measure the others."""
    files: list[Any] = []
    for kind, lines in (("harmful", ASKED[:20]), ("harmless", ANSWERED[:20])):
        (tmp_path / f"{kind}.txt").write_text("\n".join(lines), encoding="utf-8")
        files += [f"--{kind}", tmp_path / f"{kind}.txt"]
    # The embedded prompts come from wheels; these stand in for them, and half of them are measured.
    sets = {
        "harmful": {"source": {"path": str(tmp_path / "all.txt")}, "format": "lines"},
        "harmless": {
            "source": {"path": str(tmp_path / "rest.txt")},
            "format": "lines",
            "splits": {"train": 12, "validation": 8},
        },
    }
    (tmp_path / "all.txt").write_text("\n".join(ASKED), encoding="utf-8")
    (tmp_path / "rest.txt").write_text("\n".join(ANSWERED[20:]), encoding="utf-8")
    monkeypatch.setattr("aird.prompts.embedded.PROMPT_SETS", sets)
    monkeypatch.setattr(
        "aird.commands.check_repair.REPLIES", Replies(train_harmful=12, train_harmless=12, validation=8)
    )
    return files


def test_what_was_measured_outlives_a_repair_that_fails(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A calibrated patch is not learnt for a model with another chat template; that is known only then."""
    other = Path(shutil.copytree(original, tmp_path / "other"))
    template = (other / "chat_template.jinja").read_text(encoding="utf-8")
    (other / "chat_template.jinja").write_text(f"Be kind. {template}", encoding="utf-8")
    rows = [{"id": n, "kind": kind, "degenerate": False} for kind in ("harmful", "harmless") for n in range(20)]
    before, after = ([row | {"refused": row["kind"] == kind} for row in rows] for kind in ("harmful", "none"))
    damaged = judge_change(before, after)
    monkeypatch.setattr("aird.commands.check.judge_change", lambda *_: damaged)  # random weights refuse nothing
    outputs = {name: tmp_path / f"check.{name}" for name in ("html", "xml", "json")}
    files = ["--report", outputs["html"], "--junit", outputs["xml"], "--json", outputs["json"]]
    options = ["--repair", tmp_path / "adapter", "--transformers", "--tokens", 2, "--other-tokens", *files]
    assert check(original, other, *withprompts_to_learn(tmp_path, monkeypatch), *options) == 2
    assert "renders prompts otherwise than the original" in capsys.readouterr().err
    record = read_json(outputs["json"])
    assert (record["outcome"], record["exit_code"]) == ("regression", 3) and "before_the_repair" not in record
    assert "patch" not in record["facts"] and not (tmp_path / "adapter").exists()
    assert ElementTree.parse(outputs["xml"]).getroot().attrib["failures"] == "1"
    assert "Regression: harmful" in outputs["html"].read_text(encoding="utf-8")


def test_a_repair_learns_from_no_prompt_that_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the measured prompts are some of aird's own."""
    lines = [f"Tell me of harmful apple{n} pear{n} fig{n} plum{n}" for n in range(400)]
    (tmp_path / "all.txt").write_text("\n".join(lines), encoding="utf-8")
    source = {"source": {"path": str(tmp_path / "all.txt")}, "format": "lines"}
    monkeypatch.setitem(PROMPT_SETS, "harmful", source)
    harmless = read_json_lines(HARMLESS)
    some = {
        "harmful": [{"instruction": line} for line in lines[:50]],
        "harmless": [record for record in harmless if record["split"] == "validation"][:30],
    }
    learnt = prompts_to_learn(some, 42)
    for kind, records in learnt.items():
        measured = {record["instruction"] for record in some[kind]}
        assert not measured & {record["instruction"] for record in records if record["split"]}
        # As many as the workflow's calibration takes, which the published numbers are of.
        splits = Counter(record["split"] for record in records)
        assert splits["train"] >= getattr(Replies(), f"train_{kind}") and splits["validation"] >= Replies().validation
    with pytest.raises(ValueError, match="too few are left: .*; measure with other harmless prompts"):
        prompts_to_learn({**some, "harmless": harmless}, 42)


BROKEN = {
    "list": "[1]\n",
    "torn": '{"id": \n',
    "half": '{"id": "\\ud800"}\n',
    "null": '{"id": "a", "kind": "harmful", "instruction": "b", "completion": "c", "sampling": null}\n',
    "yaml_torn": "a: [1",
    "yaml_list": "[1]",
    "yaml_twice": "seed: 42\nseed: 7\n",
}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name two models, the original and its compressed form, or --demo"),
        (["--demo", "a", "b"], "--demo is a stored example, so it does not use a model"),
        (["a", "b", "--margin", "0"], "--margin: 0 is no margin"),
        (["{stored}", "{stored}", "--patch", "adapter"], "--patch: adapter holds no adapter_config.json"),
        (["no/model", "no/other", "--patch", "a", "--repair", "b"], "--patch and --repair: a repair is made for"),
        (["{stored}", "{stored}", "--repair", "adapter"], "need the compressed model itself"),
        (["{stored}", "{stored}", "--harmful", "x.txt", "--harmless", "y.txt"], "name one of them"),
        (["{stored}", "{stored}", "--prompts", "advbench"], "name one of them"),
        (["{stored}", "{stored}", "--count", "9"], "--count: the prompts are all those of the stored answers"),
        (["{stored}", "{stored}", "--tokens", "9"], "the stored answers have up to 4 tokens"),
        (["{stored}", "{other}"], "different prompts"),
        (["{stored}", "{longer}"], "other limits, 4 tokens in {stored} and 8 tokens in {longer}"),
        (["{list}", "{stored}"], "line 1 is no JSON object, but list"),
        (["{torn}", "{stored}"], "line 1 is no JSON ("),
        (["{half}", "{stored}"], "line 1 is no JSON ('utf-8' codec can't encode character"),
        (["{null}", "{stored}"], "holds no completions of `aird evaluate`"),
        (["no/model", "no/other", "--url", "http://127.0.0.1:9"], "run `aird evaluate no/model` first"),
        (
            ["{gguf}", "no/other", "--llama-cpp", "{gguf}", "--url", "http://127.0.0.1:9", "--repair", "adapter"],
            "--repair: the server at http://127.0.0.1:9 serves one model",
        ),
        (["{gguf}", "no/other", "--llama-cpp", "{gguf}", "--url", "http://127.0.0.1:9"], "read as a GGUF model"),
        (["nothing/here/at/all", "{stored}"], "is no folder"),
    ],
)
def test_bad_input_is_an_operational_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    names = {
        "stored": stored(tmp_path, 9),
        "other": stored(tmp_path, 9, total=12, name="other"),
        "longer": stored(tmp_path, 9, name="longer", sampling={"max_tokens": 8}),
        "gguf": tmp_path / "model.gguf",
    }
    names["gguf"].write_bytes(b"GGUF damaged")
    for name, text in BROKEN.items():
        names[name] = tmp_path / f"{name}.{'yaml' if name.startswith('yaml') else 'jsonl'}"
        names[name].write_text(text, encoding="utf-8")
    assert check(*(text.format(**names) for text in arguments)) == 2
    assert message.format(**names) in capsys.readouterr().err


def test_a_failure_on_the_way_has_the_code_of_an_operational_error(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 1 of the other commands would tell a pipeline nothing."""
    url = "http://127.0.0.1:9"
    assert check(stored(tmp_path, 9), original, "--url", url) == 2
    assert "error" in capsys.readouterr().err


def test_files_that_cannot_be_read_are_an_operational_error(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases: dict[str, tuple[list[object], str]] = {}
    messages = {
        "yaml_torn": "cannot be read as YAML",
        "yaml_list": "is no configuration",
        "yaml_twice": 'line 2: key "seed" stands already in line 1; remove one',
    }
    for name, message in messages.items():
        (tmp_path / f"{name}.yaml").write_text(BROKEN[name], encoding="utf-8")
        cases[name] = ([original, original, "--suite", f"{tmp_path / name}.yaml:safety"], message)
    truncated = Path(shutil.copytree(original, tmp_path / "truncated"))
    weights = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(weights[:-1000])
    cases["truncated"] = ([stored(tmp_path, 9), truncated], "model.safetensors is truncated or altered")
    cut = Path(shutil.copytree(original, tmp_path / "cut"))
    (cut / "model.safetensors").write_bytes(weights[:1000])
    cases["cut"] = ([stored(tmp_path, 9), cut], "model.safetensors is truncated or altered")
    for name, template in (("syntax", "{% for %}"), ("refuses", "{{ raise_exception('no') }}")):
        folder = Path(shutil.copytree(original, tmp_path / name))
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        cases[name] = ([stored(tmp_path, 9), folder], "the model's chat template fails (Template")
    for name, (arguments, message) in cases.items():
        assert check(*arguments, "--transformers") == 2, name
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("aird ")]
        assert message in line, name


def test_a_fault_of_the_program_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aird.commands.check.judge_change", lambda *_: {}["nothing"])
    assert check(stored(tmp_path, 9), stored(tmp_path, 9)) == 2
    assert "KeyError: 'nothing'" in capsys.readouterr().err

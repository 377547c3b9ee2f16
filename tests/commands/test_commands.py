"""The command `aird`: each step on a tiny model through the console entry, and every kind of bad input."""

from __future__ import annotations

import argparse
import csv
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from conftest import load_float32
from grid import write_prompts
from peft import PeftModel
from safetensors.torch import load_file
from servers import small_vllm
from thinking_templates import DEEPSEEK
from tiny_model import new
from transformers import AutoTokenizer, LlamaConfig

from aird.commands import evaluate
from aird.commands.compare import describe_comparison
from aird.commands.inputs import ModelFolder, take_gpus_for
from aird.commands.main import COMMANDS, main
from aird.commands.patch import _prompts as prompts_of
from aird.commands.patch import add_arguments
from aird.commands.prompt_files import read_prompts
from aird.commands.search import calibrated_from
from aird.compression.compress import compress
from aird.compression.recipes.round_to_nearest import RoundToNearest
from aird.evaluation.engines.vllm import Vllm
from aird.models import loading
from aird.prompts.chat import chat_tokens
from aird.settings.models import Chat
from aird.settings.patches import Replies
from aird.support import gpus
from aird.support.files import check_folder, hash_folder, read_json, read_json_lines, sha256_of, write_json
from aird.support.gpus import own_gpus

SIZES = ["--train", "16", "--validation", "8", "--minimum-induce=-1000"]


@pytest.fixture(scope="module")
def folder(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with prompts, a model, its 4-bit form, and what `aird direction` and `aird patch` made of them."""
    root = tmp_path_factory.mktemp("commands")
    write_prompts(root)
    (root / "model").symlink_to(original)
    compress(root / "model", root / "w4a16", RoundToNearest(weight_bits=4, group_size=64), None)
    assert main(["direction", str(root / "model"), *prompts(root), *SIZES, "--output", str(root / "direction")]) == 0
    assert main(["patch", *pair(root), "--direction", str(root / "direction"), "--output", str(root / "adapter")]) == 0
    return root


def prompts(root: Path, harmful: str = "harmful.txt") -> list[str]:
    return ["--harmful", str(root / harmful), "--harmless", str(root / "harmless.txt")]


def pair(root: Path) -> list[str]:
    return [str(root / "model"), str(root / "w4a16")]


def test_direction_writes_the_artifacts_of_the_workflow(folder: Path) -> None:
    tensors = load_file(folder / "direction/direction.safetensors")
    record = read_json(folder / "direction/direction.json")
    assert tensors["unit"].dtype == torch.float64 and tensors["unit"].shape == (128,)
    assert tensors["unit"].norm().item() == pytest.approx(1) and tensors["norm"].item() == record["norm"]
    scores = pandas.read_csv(folder / "direction/scores.csv")
    assert list(scores.columns) == ["layer", "position", "induce", "kl", "bypass"]
    assert len(scores) == record["candidates"] == record["layers"] * record["positions"]
    provenance = read_json(folder / "direction/provenance.json")
    assert provenance["prompts"]["harmful"] == sha256_of(folder / "harmful.txt")
    assert provenance["model"] == {"name": str(folder / "model"), "commit": None}


def test_the_same_command_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    assert main(["direction", str(folder / "model"), *prompts(folder), *SIZES, "--output", str(tmp_path)]) == 0
    before = {name: hash for name, hash in hash_folder(folder / "direction").items() if name != "provenance.json"}
    assert before.items() <= hash_folder(tmp_path).items()


def test_compare_uses_a_ready_direction_and_searches_the_other(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(folder / "direction"), str(folder / "w4a16")]
    assert main(["compare", *models, *prompts(folder), *SIZES, "--output", str(tmp_path / "first")]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "first/original").exists()
    # What was searched there can be compared again, without a model and without prompts.
    models[1] = str(tmp_path / "first/compressed")
    assert main(["compare", *models, "--output", str(tmp_path / "second")]) == 0
    first, second = (read_json(tmp_path / name / "comparison.json") for name in ("first", "second"))
    assert first == second
    told = list(describe_comparison(first))
    assert "\n".join(told) in printed
    # The cosines that are judged are told, of all prompts as the nulls are, and not those of the prompts that were kept.
    assert list(describe_comparison({**first, "cosine_same_site": -1.0, "cosine_own_source": -1.0})) == told
    assert told[0].split()[1] == f"{first['cosine_same_site_shared']:.3f}"
    assert 0.5 < first["cosine_same_site"] < 1 and first["split_half_null"]["low"] < 1


def test_a_direction_in_the_folder_of_a_model_is_not_taken_for_its_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(folder / "model", tmp_path / "model"))
    shutil.copytree(folder / "direction", model, dirs_exist_ok=True)
    assert main(["compare", str(folder / "direction"), str(model), "--output", str(tmp_path / "out")]) == 2
    assert f"{model} holds a model and stored results (direction.json)" in capsys.readouterr().err


def test_results_are_not_written_into_the_folder_of_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(folder / "model")
    for command in (["direction", model], ["evaluate", model], ["compare", *pair(folder)]):
        assert main([*command, *prompts(folder), "--output", model]) == 2
        assert f"--output: {model} holds a model; name a folder of its own" in capsys.readouterr().err


def test_patch_writes_an_adapter_that_peft_loads_by_its_own_record(folder: Path) -> None:
    record = read_json(folder / "adapter.statistics.json")
    check_folder(folder / "adapter", record["files"])
    assert record["settings"]["method"] == "scale"  # no prompts were given
    base = read_json(folder / "adapter/adapter_config.json")["base_model_name_or_path"]
    assert Path(base) == folder / "w4a16"
    tokens = torch.tensor([chat_tokens(AutoTokenizer.from_pretrained(folder / "model"), "Name a colour.")])
    with torch.no_grad():
        model = load_float32(folder / "model")
        plain = model(tokens).logits
        patched = PeftModel.from_pretrained(model, str(folder / "adapter"))(tokens).logits
    assert (plain - patched).abs().max() > 0.01


def test_the_cards_own_lines_load_the_adapter_on_a_packed_base(folder: Path) -> None:
    text = (folder / "adapter/README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(folder / "adapter"))
    found: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), found)
    assert sum("lora_A" in name for name, _ in found["model"].named_parameters()) == 2


def test_a_calibration_takes_the_workflows_numbers_of_prompts(tmp_path: Path) -> None:
    """Its published numbers are of those: twice as many harmless prompts, and twice as many to choose by."""
    options = argparse.ArgumentParser()
    add_arguments(options)
    for kind in ("harmful", "harmless"):
        lines = [f"{kind} apple{n} pear{n} fig{n} plum{n}" for n in range(320)]
        (tmp_path / f"{kind}.txt").write_text("\n".join(lines), encoding="utf-8")
    named = ["original", "compressed", "--output", "adapter", *prompts(tmp_path)]
    arguments = options.parse_args(named)
    assert calibrated_from(arguments) == Replies()
    splits = {
        kind: Counter(record["split"] for record in records)
        for kind, records in prompts_of("calibrate", arguments).items()
    }
    assert splits["harmful"]["train"] == 128 and splits["harmless"]["train"] == 256
    assert splits["harmful"]["validation"] == splits["harmless"]["validation"] == 64
    # A direction alone asks for fewer.
    (tmp_path / "harmless.txt").write_text("\n".join(lines[:300]), encoding="utf-8")
    assert prompts_of("scale", arguments)
    with pytest.raises(ValueError, match="--harmless: .*ask for fewer with --train and --validation"):
        prompts_of("calibrate", arguments)
    with pytest.raises(ValueError, match="at least --train 8 and --validation 4"):
        calibrated_from(options.parse_args([*named, "--train", "4"]))


def test_patch_fits_and_merges(folder: Path, tmp_path: Path) -> None:
    more = ["--direction", str(folder / "direction"), *prompts(folder), "--train", "16", "--depth", "2"]
    more += ["--method", "fit", "--merged", str(tmp_path / "merged"), "--output", str(tmp_path / "adapter")]
    assert main(["patch", *pair(folder), *more]) == 0
    record = read_json(tmp_path / "adapter.statistics.json")
    layer = read_json(folder / "direction/direction.json")["layer"]
    assert record["settings"]["method"] == "fit"
    assert record["blocks"] == list(range(max(0, layer - 2), max(1, layer)))
    assert "library_name: transformers" in (tmp_path / "merged/README.md").read_text(encoding="utf-8")
    load_float32(tmp_path / "merged")


def test_patch_compensates_without_a_direction(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [*prompts(folder), "--train", "8", "--validation", "4", "--output", str(tmp_path / "adapter")]
    assert main(["patch", *pair(folder), "--method", "compensate", "--rank", "2", *more]) == 0
    assert "direction" not in capsys.readouterr().out  # none is searched
    record = read_json(tmp_path / "adapter.statistics.json")
    assert record["settings"]["rank"] == 2 and record["direction"] is None
    assert read_json(tmp_path / "adapter/adapter_config.json")["r"] == 2
    for each in record["compensation"].values():
        assert each["left"] == pytest.approx(1 - sum(each["shares"][:2]), abs=1e-6) and each["left"] < 1
        assert len(each["tokens"]) == 3 and 0 < each["tokens"][0]["share"] <= 1
    with pytest.raises(SystemExit):  # the baselines stay with the workflow
        main(["patch", *pair(folder), "--method", "lora", *more])


def test_patch_replaces_its_own_adapter_and_nothing_else(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, adapter = tmp_path / "work", tmp_path / "adapter"
    work.mkdir()
    (work / "thesis.txt").write_text("mine")
    command = ["patch", *pair(folder), "--direction", str(folder / "direction"), "--method", "scale", "--train", "4"]
    assert main([*command, "--output", str(adapter)]) == 0
    first = hash_folder(adapter)
    assert main([*command, "--alpha", "0.5", "--output", str(adapter)]) == 0
    assert hash_folder(adapter).keys() == first.keys() and hash_folder(adapter) != first
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(work)
    capsys.readouterr()
    for output, merged, message in (
        (".", None, "is the folder that you work in"),
        ("..", None, "is the folder that you work in"),
        ("thesis.txt", None, "is no folder"),
        ("../link", None, "is no folder"),
        (folder / "model", None, "is no folder"),
        (folder / "w4a16", None, "which would be lost"),
        (adapter, adapter, "which would be lost"),
        (adapter, ".", "--merged: . is the folder that you work in"),
        (adapter, folder / "w4a16", "which would be lost"),
        ("new/adapter", "new", "lie in each other"),
        ("new", "new", "lie in each other"),
    ):
        more = [] if merged is None else ["--merged", str(merged)]
        assert main([*command, "--output", str(output), *more]) == 2
        assert message in capsys.readouterr().err
    (adapter / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    for output in (work, adapter):
        assert main([*command, "--output", str(output)]) == 2
        assert "exists already and holds" in capsys.readouterr().err
    (adapter / "notes.txt").unlink()
    assert written == {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_evaluate_with_transformers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    common = [*prompts(folder, "attack.txt"), "--count", "6", "--tokens", "8", "--transformers"]
    assert main(["evaluate", str(folder / "model"), *common, "--output", str(tmp_path / "plain")]) == 0
    assert "over_refusal" in capsys.readouterr().out
    assert "nothing shows that it serves" not in caplog.text  # it is what others are checked against
    reference = ["--reference", str(tmp_path / "plain/completions.jsonl"), "--adapter", str(folder / "adapter")]
    assert main(["evaluate", str(folder / "w4a16"), *common, *reference, "--output", str(tmp_path / "patched")]) == 0
    plain, patched = (read_json(tmp_path / name / "scores.json") for name in ("plain", "patched"))
    assert plain["rates"]["refusal"]["n"] == patched["rates"]["over_refusal"]["n"] == 6
    completions = read_json_lines(tmp_path / "patched/completions.jsonl")
    assert [record["kind"] for record in completions] == ["harmful"] * 6 + ["harmless"] * 6
    assert all(0 < record["tokens"] <= 8 and record["versions"]["transformers"] for record in completions)
    # The same answers under both models: only then can the perplexities be compared.
    assert [answer["id"] for answer in plain["answers"]] == [answer["id"] for answer in patched["answers"]]
    assert plain["perplexity"]["perplexity"] < patched["perplexity"]["perplexity"]


def test_the_workflows_vllm_is_looked_for_in_the_checkout_and_not_where_the_user_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working folder may be a stranger's model, and what the record names is run."""
    record = {"python": "vllm/bin/python", "versions": {"vllm": "1"}}
    for name in ("work", "checkout"):
        (tmp_path / name / "results/environments/vllm/bin").mkdir(parents=True)
        (tmp_path / name / "results/environments/vllm/bin/python").touch()
        write_json(tmp_path / name / "results/environments/vllm.json", record)
        (tmp_path / name / "workflow").mkdir()
        (tmp_path / name / "workflow/Snakefile").touch()
    (tmp_path / "packages").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv(evaluate.engine_variable("vllm"), raising=False)
    asked = argparse.Namespace()

    def engine(packages: str) -> Any:
        monkeypatch.setattr(evaluate, "PACKAGES", tmp_path / packages)
        return evaluate.choose_engine(asked, "model")

    python = tmp_path / "checkout/results/environments/vllm/bin/python"
    assert engine("checkout").python == python
    assert engine("packages").describe() == "Transformers"
    # As pip notes where a package was installed from.
    installed = new(tmp_path / "packages/aird-0.1.0.dist-info")
    (installed / "METADATA").write_text("Name: aird\nVersion: 0.1.0\n", encoding="utf-8")
    write_json(installed / "direct_url.json", {"url": (tmp_path / "checkout").as_uri(), "dir_info": {}})
    assert engine("packages").python == python
    (tmp_path / "checkout/workflow/Snakefile").unlink()
    assert engine("checkout").describe() == engine("packages").describe() == "Transformers"


def test_evaluate_a_model_that_thinks(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thinker = Path(shutil.copytree(folder / "model", tmp_path / "thinker"))
    (thinker / "chat_template.jinja").write_text(DEEPSEEK)
    asked = ["evaluate", str(thinker), *prompts(folder), "--count", "2", "--tokens", "4", "--transformers"]
    assert main([*asked, "--output", str(tmp_path / "none")]) == 2
    assert "this model thinks" in capsys.readouterr().err
    chat = ["--system-prompt", "Be kind.", "--thinking", "<think>", "</think>"]
    assert main([*asked, *chat, "--think", "--output", str(tmp_path / "thinking")]) == 0
    scores = read_json(tmp_path / "thinking/scores.json")
    assert scores["rates"]["unfinished"]["rate"] == 1  # four tokens end no thought
    assert scores["rates"]["refusal"]["rate"] == scores["rates"]["asr_arditi"]["rate"] == 0
    assert read_json(tmp_path / "thinking/provenance.json")["model"]["chat"] == {
        "system_prompt": "Be kind.",
        "template_arguments": {},
        "thinking": {"start": "<think>", "end": "</think>"},
        "thinks": True,
    }
    assert main([*asked, *chat, "--output", str(tmp_path / "closed")]) == 0
    assert read_json(tmp_path / "closed/scores.json")["rates"]["unfinished"]["rate"] == 0


def test_what_is_compared_is_addressed_in_one_way(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = Path(shutil.copytree(folder / "model", tmp_path / "kind"))
    loading.write_chat(Chat(system_prompt="Be kind."), kind)
    model, direction, output = str(folder / "model"), str(folder / "direction"), ["--output", str(tmp_path / "output")]
    asked = [*prompts(folder), *SIZES, *output]
    scores, stored = tmp_path / "scores", ["--count", "2", "--tokens", "2", "--transformers"]
    assert main(["evaluate", str(kind), *prompts(folder), *stored, "--output", str(scores)]) == 0
    told = tmp_path / "told"
    assert main(["evaluate", model, *prompts(folder), *stored, "--output", str(told)]) == 0
    capsys.readouterr()
    for command in (
        ["patch", str(kind), model, *asked],
        ["patch", str(kind), str(kind), "--direction", direction, *output],
        ["compare", direction, str(kind), *asked],
        ["check", model, str(kind), *prompts(folder), "--transformers"],
        ["check", str(scores), model, "--transformers"],
        ["check", str(told), str(scores)],
    ):
        assert main(command) == 2
        assert "have different chat settings" in capsys.readouterr().err
    # Nor is one side let think, and the other not.
    assert main(["check", str(told), model, "--transformers", "--think"]) == 2
    assert "one side is asked with thoughts and the other without" in capsys.readouterr().err
    assert main(["check", str(scores), str(kind), "--transformers"]) == 4


def test_chat_options_that_cannot_be(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["evaluate", str(folder / "model"), *prompts(folder), "--transformers", "--output", str(tmp_path)]
    for options, message in (
        (["--template-argument", "enable_thinking"], "is not NAME=VALUE"),
        (["--template-argument", "enable_thinking=false"], "does not use `enable_thinking`"),
        (["--template-argument", "tokenize=false"], "sets tokenize"),
    ):
        assert main([*asked, *options]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.workflow
def test_evaluate_with_vllm_agrees_with_transformers(folder: Path, tmp_path: Path, vllm_python: Path) -> None:
    common = [str(folder / "w4a16"), "--adapter", str(folder / "adapter"), *prompts(folder, "attack.txt")]
    common += ["--count", "8", "--tokens", "4", "--length", "256"]
    assert main(["evaluate", *common, "--vllm", str(vllm_python), "--output", str(tmp_path / "vllm")]) == 0
    reference = ["--reference", str(tmp_path / "vllm/completions.jsonl")]
    assert main(["evaluate", *common, *reference, "--transformers", "--output", str(tmp_path / "local")]) == 0
    served, local = (read_json(tmp_path / name / "scores.json") for name in ("vllm", "local"))
    assert served["parity"]["prompts"] == 8 and local["parity"] is None
    assert served["perplexity"]["perplexity"] == pytest.approx(local["perplexity"]["perplexity"], rel=0.1)


@pytest.mark.workflow
def test_vllm_serves_the_adapter_folder_itself(folder: Path, tmp_path: Path, vllm_python: Path) -> None:
    from aird.evaluation.engine import ServerSettings
    from aird.evaluation.parity import first_token_logprobs
    from aird.models.loading import load_model

    tokens = [chat_tokens(AutoTokenizer.from_pretrained(folder / "model"), "Name a colour.")]
    settings = ServerSettings(256, threads=1)
    with small_vllm(vllm_python).serve(
        folder / "model", settings, tmp_path / "server.log", folder / "adapter"
    ) as client:
        found = client.complete(tokens, 1, logprobs=5)[0].first_token_logprobs
    expected = first_token_logprobs(load_model(folder / "model", folder / "adapter"), tokens)[0]
    assert found is not None
    for token, value in found.items():
        assert value == pytest.approx(expected[token].item(), abs=0.15)


@pytest.mark.workflow
def test_the_commands_give_what_the_workflow_gives(finished: Path, tmp_path: Path) -> None:
    results = finished / "results"
    sets = [text for kind in ("harmful", "harmless") for text in (f"--{kind}", str(results / f"prompts/{kind}.jsonl"))]
    models = [str(results / f"models/tiny/{name}/checkpoint") for name in ("original", "wanda-50")]
    seed = ["--seed", "1"]
    assert main(["compare", *models, *sets, *SIZES, *seed, "--output", str(tmp_path)]) == 0
    for mine, name in (("original", "original"), ("compressed", "wanda-50")):
        theirs = results / "directions/tiny" / name
        assert sha256_of(tmp_path / mine / "direction.safetensors") == sha256_of(theirs / "direction.safetensors")
        assert sha256_of(tmp_path / mine / "scores.csv") == sha256_of(theirs / "scores.csv")
    assert read_json(tmp_path / "comparison.json") == read_json(results / "comparisons/tiny/wanda-50.json")
    direction = ["--direction", str(tmp_path / "original"), "--output", str(tmp_path / "adapter")]
    assert main(["patch", *models, *direction]) == 0
    weights = "adapter_model.safetensors"
    theirs = results / "patches/tiny/wanda-50/aird/adapter"
    assert sha256_of(tmp_path / "adapter" / weights) == sha256_of(theirs / weights)


def test_prompts_are_read_from_every_format(tmp_path: Path) -> None:
    texts = ["Name a colour.", "What is 2 + 2?", "Explain how a bicycle pump works."]
    (tmp_path / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"goal": text}) + "\n" for text in texts), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps([{"question": text} for text in texts]), encoding="utf-8")
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["number", "prompt"])
        writer.writeheader()
        writer.writerows({"number": number, "prompt": text} for number, text in enumerate(texts))
    for suffix in ("txt", "jsonl", "json", "csv"):
        records = read_prompts(tmp_path / f"a.{suffix}", "harmful", None)
        assert [record["instruction"] for record in records] == texts, suffix
        assert [record["id"] for record in records] == ["harmful-0001", "harmful-0002", "harmful-0003"]


def test_the_mark_of_windows_and_other_separators_are_no_part_of_a_prompt_file(tmp_path: Path) -> None:
    """Excel writes "CSV UTF-8" with a mark at the start, and JSON may hold U+2028 as it is."""
    mark, inside = "\ufeff", "Name a\u2028colour,\x0c please."
    (tmp_path / "a.csv").write_text(f"{mark}goal,target\r\nName a colour.,x\r\n", encoding="utf-8", newline="")
    (tmp_path / "a.txt").write_text(f"{mark}Name a colour.\r\n{inside}\r\n", encoding="utf-8", newline="")
    line = json.dumps({"goal": inside}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(f'{mark}{line}\r\n{{"goal": "Name a colour."}}\n', encoding="utf-8", newline="")
    (tmp_path / "a.json").write_text(f"{mark}[{line}]", encoding="utf-8")
    (tmp_path / "a.yaml").write_text(f"{mark}- goal: Name a colour.\n", encoding="utf-8")
    for suffix, texts in (
        ("csv", ["Name a colour."]),
        ("txt", ["Name a colour.", inside]),
        ("jsonl", [inside, "Name a colour."]),
        ("json", [inside]),
        ("yaml", ["Name a colour."]),
    ):
        records = read_prompts(tmp_path / f"a.{suffix}", "harmful", None)
        assert [record["instruction"] for record in records] == texts, suffix


def bad_inputs(folder: Path, tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """Return, per kind of mistake, a command line and what its message has to say."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles/pytorch_model.bin").write_bytes(b"")
    (tmp_path / "list.csv").write_text("number,sentence\n1,Name a colour.\n", encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text('{"instruction": "Name a colour."}\n{"instr\n', encoding="utf-8")
    half = {"id": "a", "split": None, "instruction": "Name a \ud800 colour."}
    whole = {**half, "instruction": "Name \U0001f600."}
    (tmp_path / "half.jsonl").write_text(f"{json.dumps(whole)}\n{json.dumps(half)}\n", encoding="utf-8")
    (tmp_path / "deep.json").write_text("[" * 100_000, encoding="utf-8")
    (tmp_path / "list.doc").write_text("Name a colour.\n", encoding="utf-8")
    model, asked = str(folder / "model"), prompts(folder)
    patch, evaluate = ["patch", *pair(folder)], ["evaluate", model, *asked]
    given = [*patch, "--direction", str(folder / "direction")]

    def harmful(name: str) -> list[str]:
        return ["direction", model, "--harmful", str(tmp_path / name), *asked[2:], *SIZES]

    def search(name: str, *more: str) -> list[str]:
        return ["direction", name, *asked, *SIZES, *more]

    return {
        "no such prompts": (harmful("none.txt"), "--harmful: there is no file"),
        "unknown ending": (harmful("list.doc"), "ends in none of .txt"),
        "unknown column": (harmful("list.csv"), "name the field with --field"),
        "broken line": (harmful("broken.jsonl"), "cannot be read as jsonl"),
        "half a character": (harmful("half.jsonl"), "record 2 of half.jsonl: the text holds half a character"),
        "lists without an end": (harmful("deep.json"), "deep.json cannot be read as json"),
        "too few prompts": (["direction", model, *asked], "ask for fewer with --train and --validation"),
        "a folder that is no model": (search(str(tmp_path / "empty")), "no *.safetensors"),
        "pickled weights": (search(str(tmp_path / "pickles")), "save_pretrained"),
        "a path that does not exist": (search("./models/none"), "is no folder"),
        "a hub id without a network": (
            search("organisation/none"),
            "there is no folder organisation/none here, and as a hub id: config.json of model organisation/none",
        ),
        "a revision without a network": (
            search("organisation/none@v1"),
            "organisation/none at v1 could not be fetched",
        ),
        "a GGUF file without a network": (
            search("organisation/none@v1:Q4.gguf"),
            "Q4.gguf of model organisation/none at v1 could not be fetched",
        ),
        "a file of a hub model that is no GGUF file": (
            search("organisation/none:model.safetensors"),
            "is no GGUF file; write organisation/none:file.gguf",
        ),
        "a file outside of its repository": (
            search("organisation/none:../Q4.gguf"),
            "leads out of the wheel or repository",
        ),
        "no refusal tokens": (search(model, "--refusal-tokens", "none.json"), "--refusal-tokens: there is no file"),
        "a size that cannot be": (["direction", model, *asked, "--train", "1"], "--train"),
        "fit without prompts": ([*given, "--method", "fit"], "--method fit needs the instructions"),
        "a setting of another method": (
            [*given, "--method", "scale", "--ridge", "1"],
            "--ridge is no setting of --method scale",
        ),
        "neither direction nor prompts": (patch, "--harmful is missing"),
        "a direction that is none": ([*patch, "--direction", str(tmp_path)], "make it with `aird direction`"),
        "blocks that are none": ([*given, "--blocks", "first"], "--blocks: first"),
        "blocks that hang on another direction": (
            [*given, "--blocks", "own_source"],
            "--blocks: own_source needs the compressed model's own direction",
        ),
        "a block beyond the last": ([*given, "--blocks", "9"], "do not exist"),
        "strength zero": ([*given, "--alpha", "0"], "--alpha"),
        "an adapter that is none": ([*evaluate, "--adapter", str(tmp_path)], "no adapter_config.json"),
        "tasks without vLLM": (
            [*evaluate, "--transformers", "--tasks", "boolq"],
            "--tasks: Transformers cannot be asked these; name an engine that can with --url or --vllm",
        ),
        "an address that is none": ([*evaluate, "--url", "localhost"], "is no address"),
        "no room for a completion": (
            [*evaluate, "--transformers", "--tokens", "1020"],
            "and the longest that may be asked is 1024; write --length 10",
        ),
        "too many asked for": ([*evaluate, "--count", "999"], "ask for fewer with --count"),
        "other prompts": (
            ["compare", str(folder / "direction"), model, *asked, *SIZES, "--seed", "7"],
            "rest on other prompts",
        ),
    }


def test_bad_input_is_one_clear_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name, (arguments, message) in bad_inputs(folder, tmp_path).items():
        capsys.readouterr()
        code = main([*arguments, "--output", str(tmp_path / "out")])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("aird ")]
        assert code == 2, name
        assert len(lines) == 1 and message in lines[0], (name, lines)
        assert lines[0].startswith(f"aird {arguments[0]}: error: "), name


def test_an_export_has_no_options_of_a_chat(capsys: pytest.CaptureFixture[str]) -> None:
    """It asks no model; such an option was taken and did nothing."""
    with pytest.raises(SystemExit):
        main(["export", "--gguf", "adapter", "adapter.gguf", "--system-prompt", "Be kind."])
    assert "unrecognized arguments: --system-prompt" in capsys.readouterr().err


def test_no_traceback_reaches_the_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "aird", "evaluate", "no/model", "--harmful", "x", "--harmless", "y"]
    result = subprocess.run(
        [*command, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "aird evaluate: error: --harmful: there is no file x\n"


def test_a_full_disk_is_no_fault_of_the_project(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of a file's size stands for the disk; tensors and other files have errors of their own."""
    command = ["direction", str(folder / "model"), *prompts(folder), *SIZES, "--output", str(tmp_path / "direction")]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        code = main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told = capsys.readouterr().err
    assert code == 1 and "Traceback" not in told and "report it" not in told
    assert "I/O error: File too large (os error 27); is a disk full? The temporary folder is " in told

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("aird.commands.direction.open_model_folder", fail)
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "[Errno 28] No space left on device; is a disk full?" in told and "TMPDIR can name another" in told


@pytest.mark.parametrize("command", [module.__name__.rpartition(".")[2] for module in COMMANDS])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for part in ("examples:", "files", "common errors:", f"aird {command} "):
        assert part in text, part


SHAPES = {  # width, inner width, blocks, heads
    "8b": (4096, 14336, 32, 32),
    "70b": (8192, 28672, 80, 64),
    "of-12-heads": (6144, 24576, 80, 12),
}
FREE = 80_000  # MiB of a pretended GPU


def model_of_shape(root: Path, name: str) -> ModelFolder:
    """Return a model that is a configuration only, which says how large it is."""
    width, inner, blocks, heads = SHAPES[name]
    sizes = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
    }
    config = LlamaConfig(**sizes, num_key_value_heads=4, vocab_size=128256, dtype="bfloat16")
    config.save_pretrained(root / name)
    return ModelFolder(root / name, name, None, root / name)


@pytest.fixture
def gpus_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of this test's own, and nothing that it takes outlives it."""
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(gpus, "_own", [])
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


@pytest.mark.parametrize(
    ("names", "free", "vllm", "taken"),
    [
        (["8b"], [FREE] * 4, True, ["0"]),
        (["8b"], [FREE // 8, FREE, FREE, FREE], True, ["1"]),
        (["70b"], [FREE] * 4, False, ["0", "1", "2"]),
        (["70b"], [FREE] * 4, True, ["0", "1", "2", "3"]),  # 64 heads cannot be dealt to three
        (["8b", "70b"], [FREE] * 8, True, ["0", "1", "2", "3"]),
        (["70b"], [FREE, FREE // 8, FREE, FREE], False, ["0", "2", "3"]),
        (["70b"], [FREE], True, ["0"]),  # load_model leaves a part of it in main memory
        ([], [FREE] * 2, True, []),
    ],
)
@pytest.mark.usefixtures("gpus_taken")
def test_a_command_takes_the_fewest_gpus_that_hold_its_models(
    tmp_path: Path, pretend_gpus: Any, names: list[str], free: list[int], vllm: bool, taken: list[str]
) -> None:
    pretend_gpus(len(free), *free)
    take_gpus_for([model_of_shape(tmp_path, name) for name in names], [Vllm()] if vllm else [])
    assert own_gpus() == max(1, len(taken))
    if len(free) > 1:
        assert os.environ.get("CUDA_VISIBLE_DEVICES", "") == ",".join(taken)


@pytest.mark.usefixtures("gpus_taken")
def test_a_command_refuses_what_its_gpus_do_not_hold(tmp_path: Path, pretend_gpus: Any) -> None:
    pretend_gpus(2, FREE, 1000)
    with pytest.raises(
        ValueError, match=r"do not hold 14\d GB .* \(84 GB of GPU 0, 1 GB of GPU 1 are free\); end what"
    ):
        take_gpus_for([model_of_shape(tmp_path, "70b")])
    pretend_gpus(6, *[FREE // 4] * 6)
    wide = model_of_shape(tmp_path, "of-12-heads")
    with pytest.raises(ValueError, match="its 12 attention heads, 4 of them .*; let another engine answer"):
        take_gpus_for([wide], [Vllm()])


@pytest.mark.usefixtures("gpus_taken")
def test_the_chosen_gpu_is_the_only_one_that_a_command_sees(
    folder: Path, tmp_path: Path, pretend_gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(2, 0, FREE)
    seen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))))
    asked = [*prompts(folder, "attack.txt"), "--count", "2", "--tokens", "2", "--transformers"]
    assert main(["evaluate", str(folder / "w4a16"), *asked, "--output", str(tmp_path / "scores")]) == 0
    assert set(seen) == {"1"}  # whoever asks earlier fixes what CUDA shows

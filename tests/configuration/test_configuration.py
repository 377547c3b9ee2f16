"""Every mistake in a configuration is one line that names the key and what to write; what is generated is current."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from configuration_cases import ABSENT, BASE, CASES, COMMIT, FILE_CASES, Case
from snakemake.utils import update_config

from aird.configuration.configuration import Configuration
from aird.configuration.loading import load_configuration
from aird.configuration.local_files import check_files, load_yaml_strictly
from aird.configuration.messages import ConfigurationError
from aird.configuration.reference import generated_files
from aird.evaluation.engines.vllm import VllmSettings
from aird.settings.sources import PLACEHOLDER_COMMIT
from aird.support.files import canonical_json, write_json, write_json_lines

PROJECT = Path(__file__).resolve().parents[2]
# Names in CASES that YAML would read as something else.
YAML_NAMES = {name: yaml.safe_load(name) for name in ("50", "1000.0", "true", "null", "2026-01-02")}


def changed(place: str, value: Any) -> dict[str, Any]:
    """Return the correct configuration with one value changed; what follows a table of names is one name."""
    configuration = copy.deepcopy(BASE)
    table: Any = configuration
    rest = place
    while True:
        # Names with dots are taken whole if no table has their beginning.
        key, _, after = rest.partition(".")
        if "." not in rest or key not in table or not isinstance(table[key], dict) or after == "merge":
            break
        table, rest = table[key], after
    key = YAML_NAMES.get(rest, rest)
    if value is ABSENT:
        del table[key]
    else:
        table[key] = value
    return configuration


def mistakes(values: dict[str, Any], files: bool = False) -> list[str]:
    """Return the lines about a wrong configuration, or about a right one with wrong files."""
    configuration = load_configuration(values) if files else None
    with pytest.raises(ConfigurationError) as caught:
        check_files(configuration) if configuration else load_configuration(values)
    return str(caught.value).split("\n")


ALL_CASES = [
    pytest.param(case, id=f"{topic}-{case[0]!r}-{n}") for topic, cases in CASES.items() for n, case in enumerate(cases)
]


def test_base_is_correct() -> None:
    configuration = load_configuration(BASE)
    # The ready-made checkpoint is one model's alone.
    assert len(list(configuration.cells())) == 2 * (1 + 3 * 2) + 2
    assert len(ALL_CASES) >= 60


def test_a_model_without_compressions_has_its_original_alone() -> None:
    configuration = load_configuration(changed("models.tuned.compressions", []))
    assert {cell for cell in configuration.cells() if cell[0] == "tuned"} == {("tuned", "original", "plain")}


def one_line(case: Case, files: bool = False) -> str:
    """Return the one line about a mistake, which begins and says what the case wants."""
    place, value, said, *begins = case
    (line,) = mistakes(changed(place, value), files)
    assert line.startswith(begins[0] if begins else f"{place}:") and said in line
    return line


@pytest.mark.parametrize("case", ALL_CASES)
def test_mistake_is_one_clear_line(case: Case) -> None:
    line = one_line(case)
    # A message says what is wrong, then what to write.
    assert ";" in line or "needs" in line or "in quotes" in line or "give `" in line
    assert "Input should" not in line and "pydantic" not in line


def test_a_gguf_file_is_served_by_llama_cpp_unless_another_engine_is_named() -> None:
    gguf = {"recipe": "given", "sources": {"hub": {"path": "Q4_K_M.GGUF"}, "tuned": {"path": "folder"}}}
    values = changed("compressions.ready", gguf)
    values["compressions"]["weights"] = {**gguf, "engine": "vllm"}

    def engines(values: dict[str, Any]) -> list[str]:
        configuration = load_configuration(values)
        cells = [("hub", "ready"), ("hub", "weights"), ("tuned", "ready"), ("hub", "w4"), ("hub", "original")]
        return [configuration.engine_of(*cell) for cell in cells]

    assert engines(values) == ["llama_cpp", "vllm", "vllm", "vllm", "vllm"]
    values["serving"] = {"engine": "vllm"}
    assert engines(values) == ["vllm"] * 5
    values["compressions"]["weights"]["engine"] = "llama_cpp"
    assert mistakes(values)[0].startswith("compressions.weights.engine: llama_cpp serves GGUF files only")


def running(**addresses: Any) -> dict[str, Any]:
    """Return values whose checkpoints are served by running servers."""
    return {**changed("serving", {"engine": "url"}), "engines": {"url": addresses}}


def test_every_checkpoint_has_an_address_of_its_own() -> None:
    settings = load_configuration(running(address="http://host#{model}-{compression}-{patch}")).engine_settings("url")
    assert settings.of(("hub", "w4", "aird")).asked() == {"address": "http://host#hub-w4-aird", "addresses": None}
    (line,) = mistakes(running(address="http://host#{model}-{compression}"))
    assert line.startswith("engines.url.address: ") and "would be asked at the same address" in line
    assert "no such checkpoint is served" in mistakes(running(addresses={"hubb": {"w4": "http://a"}}))[0]
    values = running(addresses={"hub": {name: f"http://{name}" for name in ("original", "w4")}})
    said = mistakes(values)
    assert said[0].startswith("engines.url.addresses: there is no address for tuned/") and "hub/wanda" in said[0]
    values["models"]["hub"] |= {"compressions": ["w4"], "patches": []}
    del values["models"]["tuned"], values["compressions"]["ready"]
    settings = load_configuration(values).engine_settings("url")
    addresses = [settings.of(("hub", name, "plain")).asked()["address"] for name in ("w4", "wanda")]
    assert addresses == ["http://w4", None]
    # A system prompt is asked of the plain checkpoint's server.
    values["patches"] = {"asked": {"method": "system_prompt"}}
    values["models"]["hub"]["patches"] = ["asked"]
    load_configuration(values)
    values["engines"]["url"]["addresses"]["hub"]["w4"] = "http://original"
    assert "hub/original/plain and hub/w4/plain would be asked at the same address" in mistakes(values)[0]


def test_every_mistake_has_its_line() -> None:
    values = changed("seed", -1)
    values["patches"]["aird"]["alpha"] = "1"
    values["compressions"][50] = {"recipe": "fp9"}
    said = mistakes(values)
    assert [line.partition(":")[0] for line in said] == [
        "compressions.50",
        "seed",
        "compressions.50.recipe",
        "patches.aird.alpha",
    ]


def test_empty_configuration_says_every_missing_table() -> None:
    said = mistakes({})
    assert [line.partition(":")[0] for line in said] == [
        "prompt_sets",
        "directions",
        "models",
        "compressions",
        "suites",
    ]


def test_a_patch_learns_only_from_attacks_that_change_a_training_prompt() -> None:
    values = changed("suites.safety.attacks", {"begun": {"kind": "prefill"}, "again": {"kind": "follow_up"}})
    found = {"kind": "optimised_suffix", "prompts": {"set": "harmful", "split": "train"}}
    values["suites"]["safety"]["attacks"]["found"] = found

    def learning(**attacks: Any) -> dict[str, Any]:
        patch = {"method": "calibrate", "attacks": {"suite": "safety", "names": ["begun"], **attacks}}
        return {**values, "patches": {"aird": patch}}

    assert load_configuration(learning()).patches["aird"].model_dump()["attacks"]["count"] == 64
    key = "patches.aird.attacks"
    others = "and no text for training prompts; name attacks of other kinds (begun)"
    assert mistakes(learning(names=["again", "found", "bgun"])) == [
        f"{key}.names: again is a second turn, {others}",
        f"{key}.names: found is made for each checkpoint, its patch included, {others}",
        f"{key}.names: suite safety has no attack bgun; did you mean begun?",
    ]
    assert mistakes(learning(names=["begun", "begun"])) == [f"{key}.names: begun stands here twice; write it once"]
    (line,) = mistakes(learning(count=129))
    assert line.startswith(f"{key}.count:") and "write at most 128, or raise that (found: 129)" in line


def test_replies_that_a_patch_needs_are_there() -> None:
    values = changed("replies", {"validation": 64, "train_harmless": 200, "train_harmful": 150})
    values["models"] = {"hub": BASE["models"]["hub"]}
    load_configuration(values)  # no patch draws any
    told = "asks for more than split"

    def said(patch: dict[str, Any]) -> list[str]:
        return mistakes({**values, "patches": {"repair": patch}})

    of_validation = [
        f"replies.validation: {told} validation of prompt set {name} has; write at most 32, or raise "
        f"prompt_sets.{name}.splits.validation (found: 64)"
        for name in ("harmful", "harmless")
    ]
    chosen = said({"method": "choose"})
    assert chosen == of_validation
    advice = "write at most 128, or raise prompt_sets.harmless.splits.train"
    learnt = f"replies.train_harmless: {told} train of prompt set harmless has; {advice} (found: 200)"
    assert said({"method": "calibrate"}) == [*of_validation, learnt]
    tuned = f"replies.train_harmful: {told} train of prompt set harmless has; {advice} (found: 150)"
    assert said({"method": "lora"}) == [tuned]
    assert said({"method": "lora", "strengths": [1.0]}) == [*of_validation, tuned]
    # A patch that no model has draws nothing.
    values["models"] = {"hub": {**BASE["models"]["hub"], "patches": []}}
    load_configuration({**values, "patches": {"repair": {"method": "calibrate"}}})


def test_a_patch_that_is_no_adapter_has_no_direction_of_its_own() -> None:
    values = changed("patches.prompt", {"method": "system_prompt"})
    values["directions"] = {**values["directions"], "patched": ["aird", "prompt"]}
    (line,) = mistakes(values)
    assert line == "directions.patched: prompt is no adapter and leaves all directions as they are; remove it here"


def test_circular_sets() -> None:
    values = changed("prompt_sets.raw", {"combine": ["harmful"]})
    said = mistakes(values)
    assert said[0].startswith("prompt_sets.raw.combine: harmful is itself made from raw; remove one")
    assert len(said) == 2  # the circle is named at both of its ends


def test_a_running_server_has_one_form_and_a_judge_is_served_beside_it() -> None:
    values = running(address="http://localhost:8000#{model}-{compression}-{patch}")
    values["suites"]["safety"]["judge"] = {"kind": "classifier", "source": {"path": "judge"}}
    assert load_configuration(values).engines_used() == ["url", "vllm"]
    values["suites"]["safety"]["serve"] = "both"
    said = "suites.safety.serve: url serves what runs already, in one form; leave serve out (found: both)"
    assert mistakes(values) == [said]


@pytest.mark.parametrize("form", ["merged", "both"])
def test_a_patch_can_only_be_put_beside_a_gguf_file(form: str) -> None:
    values = changed("compressions.q8", {"recipe": "gguf", "type": "Q8_0"})
    values["suites"]["safety"]["serve"] = form
    assert mistakes(values) == [
        "suites.safety.serve: llama_cpp serves q8 of tuned as its GGUF file, and aird can only be put beside that; write "
        f"serve: adapter, or compressions.q8.engine: vllm (found: {form})"
    ]
    values["compressions"]["q8"]["engine"] = "vllm"
    load_configuration(values)
    values["compressions"]["q8"] = {"recipe": "kv_cache", "dtype": "q8_0"}
    (line,) = mistakes(values)
    assert line.endswith(f"write serve: adapter (found: {form})")
    values["suites"]["safety"]["serve"] = "adapter"
    load_configuration(values)


def test_set_both_combined_and_kept_apart() -> None:
    values = changed("prompt_sets.harmful.disjoint_from", ["attack", "raw"])
    assert mistakes(values) == [
        "prompt_sets.harmful.disjoint_from: raw is also in `combine`; remove it from one of the two"
    ]


def test_measuring_on_what_a_direction_only_verifies_is_no_leak() -> None:
    values = changed("suites.safety.harmful", {"set": "harmful", "split": "test"})
    load_configuration(values)


def test_set_kept_apart_from_the_measured_one_by_the_other_side() -> None:
    values = changed("prompt_sets.harmful.disjoint_from", ABSENT)
    values["prompt_sets"]["attack"]["disjoint_from"] = ["harmful"]
    load_configuration(values)


def test_harmless_prompts_under_another_name_are_kept_apart_too() -> None:
    values = changed("prompt_sets.everyday", {**BASE["prompt_sets"]["harmless"], "splits": None})
    values["suites"]["safety"]["harmless"] = {"set": "everyday"}
    places = "directions.harmless, models.tuned.refusal_tuning.harmless, compressions.wanda.calibration"
    told = "prompts of everyday may also stand in harmless, which"
    assert mistakes(values) == [
        f"suites.safety.harmless: {told} {places} uses; add everyday to prompt_sets.harmless.disjoint_from"
    ]
    values["prompt_sets"]["everyday"]["disjoint_from"] = ["harmless"]
    load_configuration(values)
    # What is joined from such sets alone is apart as well.
    values["prompt_sets"]["joined"] = {"combine": ["everyday"]}
    values["suites"]["safety"]["harmless"] = {"set": "joined"}
    load_configuration(values)


def test_patches_learn_from_sets_of_their_own() -> None:
    values = changed("patches", {"calibrated": {"method": "calibrate"}})
    more = {"source": {"path": "more.txt"}, "format": "lines", "splits": {"train": 8}}
    values["prompt_sets"] |= {"more": more, "learnt": {"combine": ["harmful", "more"]}}
    values["replies"] |= {"harmful": "learnt"}
    # Nothing says that the other file holds nothing of what is measured, or of the direction's test split.
    told = "prompts of attack may also stand in more, which replies.harmful uses"
    assert mistakes(values) == [f"suites.safety.harmful: {told}; add attack to prompt_sets.more.disjoint_from"]
    more["disjoint_from"] = ["attack", "harmful"]
    assert load_configuration(values).learnt_set("harmful") == "learnt"
    assert load_configuration(values).learnt_set("harmless") == "harmless"
    # The splits of the parts are those of the joined set: another one may be measured.
    values["suites"]["safety"]["harmful"] = {"set": "harmful", "split": "test"}
    load_configuration(values)
    values["suites"]["safety"]["harmful"]["split"] = "validation"
    assert any("replies.harmful may use the same prompts, of learnt" in line for line in mistakes(values))
    values["suites"]["safety"]["harmful"]["split"] = "test"
    values["replies"]["train_harmful"] = 169
    assert mistakes(values) == [
        "replies.train_harmful: asks for more than split train of prompt set learnt has; write at most 168, or raise "
        "prompt_sets.learnt.splits.train (found: 169)"
    ]
    values["replies"]["harmful"] = "learned"
    assert mistakes(values) == ["replies.harmful: there is no prompt set learned; did you mean learnt?"]


def test_what_a_compression_is_calibrated_on_is_kept_apart_from_what_is_measured() -> None:
    own = {"source": {"path": "own.txt"}, "format": "lines", "splits": {"train": 64}}
    values = changed("prompt_sets.own", own)
    values["compressions"]["wanda"]["calibration"] = {"prompt_set": "own"}
    advice = "add {0} to prompt_sets.own.disjoint_from"
    told = "suites.safety.{1}: prompts of {0} may also stand in own, which compressions.wanda.calibration uses; "
    wanted = [(told + advice).format(*names) for names in (("attack", "harmful"), ("harmless", "harmless"))]
    assert mistakes(values) == wanted
    own["disjoint_from"] = ["attack", "harmless"]
    load_configuration(values)
    # A set that is used as a harmless one elsewhere is one, and shares nothing with harmful ones.
    own["disjoint_from"] = ["harmless"]
    values["models"]["tuned"]["refusal_tuning"]["harmless"] = {"set": "own"}
    load_configuration(values)


def test_long_values_are_shortened() -> None:
    (line,) = mistakes(changed("models.hub.dtype", "x" * 5000))
    assert len(line) < 200


def test_ready_made_checkpoints_exist_for_their_models_only() -> None:
    configuration = load_configuration(BASE)
    assert [cell for cell in configuration.cells() if cell[1] == "ready"] == [
        ("hub", "ready", "plain"),
        ("hub", "ready", "aird"),
    ]
    assert configuration.compressions_of("tuned") == ["magnitude", "wanda", "w4"]


def test_a_patch_of_ready_made_checkpoints_that_no_model_has() -> None:
    values = changed("patches.aird.compressions", ["ready"])
    load_configuration(values)
    values["models"]["hub"]["patches"] = []
    (line,) = mistakes(values)
    assert line.startswith("patches.aird.compressions: no model that has this patch has ready; name compressions")


def test_a_corpus_is_no_prompt_that_may_leak() -> None:
    values = changed("compressions.wanda.calibration", {"corpus": "text", "seed": 3})
    values["corpora"]["text"] = {"source": {"path": "harmless.jsonl"}, "format": "jsonl", "field": "instruction"}
    calibration = load_configuration(values).compressions["wanda"].model_dump()["calibration"]
    assert calibration == {"corpus": "text", "sequences": 128, "length": 2048, "seed": 3}


# Files

ROTATED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "transform_config": {"config_groups": {}}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with every file that BASE names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw.txt").write_text("".join(f"instruction {number}\n" for number in range(300)), encoding="utf-8")
    (tmp_path / "own.txt").write_text("one\ntwo\ntwo\nthree\nfour\n", encoding="utf-8")
    records = [{"instruction": f"question {number}", "part": "train"} for number in range(300)]
    write_json_lines(tmp_path / "harmless.jsonl", records)
    write_json(tmp_path / "model/tokenizer_config.json", {"chat_template": "{{ messages }}"})
    folders = {"model": None, "folder.gguf": None, "hqq": {"quant_method": "hqq"}, "rotated": ROTATED}
    for name, quantisation in folders.items():
        write_json(tmp_path / name / "config.json", {"quantization_config": quantisation} if quantisation else {})
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "own.yaml").write_text("task: own\ncustom: !function utils.load\n", encoding="utf-8")
    (tmp_path / "file").write_text("text", encoding="utf-8")
    (tmp_path / "blob").write_bytes(b"GGUF")
    return tmp_path


@pytest.mark.parametrize("case", FILE_CASES)
def test_file_mistake_is_one_clear_line(folder: Path, case: Case) -> None:
    one_line(case, files=True)


def test_heads_of_a_local_model_that_no_number_of_gpus_can_share(folder: Path) -> None:
    values = changed("models.hub.source", {"path": "model"})
    (folder / "model/config.json").write_text('{"num_attention_heads": 14, "num_key_value_heads": 2}', encoding="utf-8")
    values["models"]["hub"]["gpus"] = 2
    check_files(load_configuration(values))
    values["models"]["hub"]["gpus"] = 4
    (line,) = mistakes(values, files=True)
    assert line.startswith("models.hub.gpus: its 14 attention heads") and "write another number" in line


def test_a_local_mixture_is_refused_for_a_recipe_that_leaves_its_experts_alone(folder: Path) -> None:
    values = changed("models.hub.source", {"path": "model"})
    values["compressions"] |= {
        "fp8": {"recipe": "fp8"},
        "w8a8": {"recipe": "round_to_nearest", "weight_bits": 8, "activation_bits": 8},
    }
    check_files(load_configuration(values))
    for config in ({"num_experts": 1}, {"text_config": {"num_local_experts": 0}}):
        (folder / "model/config.json").write_text(json.dumps(config), encoding="utf-8")
        check_files(load_configuration(values))
    for config in ({"n_routed_experts": 8}, {"text_config": {"n_routed_experts": 8}}):
        (folder / "model/config.json").write_text(json.dumps(config), encoding="utf-8")
        start = "models.hub.compressions: {} cannot be made of hub, a mixture of experts (n_routed_experts: 8): {}"
        advice = "; name the other compressions here, or a ready-made one"
        assert mistakes(values, files=True) == [
            start.format("fp8", "fp8 does not compress experts") + advice,
            start.format("w8a8", "Transformers does not round its experts' inputs, as a server would") + advice,
        ]
    values["models"]["hub"]["compressions"] = ["magnitude", "wanda", "w4", "ready"]
    check_files(load_configuration(values))


@pytest.mark.parametrize(("method", "given"), [("gptq", True), ("mxfp4", False)])
def test_a_local_model_that_is_quantised_is_no_original(folder: Path, method: str, given: bool) -> None:
    quantisation = {"quant_method": method, "bits": 4}
    (folder / "model/config.json").write_text(json.dumps({"quantization_config": quantisation}), encoding="utf-8")
    (line,) = mistakes(changed("models.hub.source", {"path": "model"}), files=True)
    start = f"models.hub.source.path: the model is quantised already, by {method}; name the unquantised original"
    assert line.startswith(start) and ("by recipe: given" in line) == given


def test_a_local_wrapper_that_is_quantised_is_neither_original_nor_compression(folder: Path) -> None:
    config = {"model_type": "llava", "text_config": {"quantization_config": {"quant_method": "gptq", "bits": 4}}}
    (folder / "hqq/config.json").write_text(json.dumps(config), encoding="utf-8")
    for place, said in (
        ("models.hub.source", "the model is quantised already, by gptq; name the unquantised original"),
        ("compressions.ready.sources.hub", "wraps a quantised text model (llava)"),
    ):
        (line,) = mistakes(changed(place, {"path": "hqq"}), files=True)
        assert line.startswith(f"{place}.path: {said}")


def test_a_server_of_the_user_s_has_its_own_cache() -> None:
    values = changed("compressions.k", {"recipe": "kv_cache", "dtype": "q8_0"})
    assert load_configuration(values).engine_of("hub", "k") == "llama_cpp"
    values["serving"] = {"engine": "vllm"}
    assert mistakes(values)[0].startswith("compressions.k.dtype: vllm serves k of tuned")
    values = changed("compressions.k", {"recipe": "kv_cache", "dtype": "fp8"})
    values["compressions"]["w4"]["key_value_cache_dtype"] = "fp8_e5m2"
    loaded = load_configuration(values)
    assert [loaded.cache_dtype_of(name) for name in ("k", "w4", "wanda")] == ["fp8", "fp8_e5m2", None]
    values |= {"serving": {"engine": "url"}, "engines": {"url": {"address": "http://h#{model}-{compression}-{patch}"}}}
    places = ("compressions.w4.key_value_cache_dtype", "compressions.k.dtype")
    lines = mistakes(values)
    assert {line.partition(":")[0] for line in lines} == set(places)
    assert all("and has no key/value cache of this type; leave it out" in line for line in lines)


def test_arguments_of_the_server_as_its_command_line_has_them() -> None:
    arguments = {"max_num_batched_tokens": 4096, "enforce-eager": True, "async-scheduling": False, "load-format": "pt"}
    assert VllmSettings(arguments=arguments).server_arguments() == [
        "--max-num-batched-tokens=4096",
        "--enforce-eager",
        "--no-async-scheduling",
        "--load-format=pt",
    ]


def test_right_files_pass(folder: Path) -> None:
    values = changed("models.hub.source", {"path": "model"})
    values["suites"]["safety"] |= {"tasks": ["own", "rte"], "task_folder": "tasks"}
    values["models"]["tuned"]["dtype"] = "float16"
    values["engines"] = {"vllm": {"executable": sys.executable}}
    check_files(load_configuration(values))


def test_the_python_of_an_image_is_not_looked_for_here(folder: Path) -> None:
    image = {"executable": "/image/bin/python"}
    values = changed("engines", {"vllm": image, "llama_cpp": image})
    values["models"]["hub"]["source"] = {"path": "model"}
    assert len(mistakes(values, files=True)) == 2
    check_files(load_configuration(values), software_is_here=False)
    values["engines"] = {"vllm": {"lock": "nothing.txt"}}
    with pytest.raises(ConfigurationError, match="name the lock file"):
        check_files(load_configuration(values), software_is_here=False)


def test_environments_that_would_end_with_their_image_are_refused(folder: Path) -> None:
    values = changed("models.hub.source", {"path": "model"})
    values["compressions"]["q4"] = {"recipe": "gguf", "type": "Q4_0"}
    values["serving"] = {}
    configuration = load_configuration(values)
    check_files(configuration)
    with pytest.raises(ConfigurationError) as raised:
        check_files(configuration, software_is_here=False)
    keys = [line.partition(":")[0] for line in str(raised.value).splitlines()]
    assert keys == ["engines.llama_cpp.executable", "engines.vllm.executable", "compressions.q4"]
    assert "keeps no environment that another job builds; name the Python of the image that has vLLM" in str(
        raised.value
    )


def test_a_patch_of_what_can_only_be_measured(folder: Path) -> None:
    values = changed("compressions.ready.sources", {"hub": {"path": "rotated"}})
    values["models"]["hub"]["source"] = {"path": "model"}
    values["patches"] |= {"asked": {"method": "system_prompt"}}
    (line,) = mistakes(values, files=True)
    assert line.startswith("patches.aird.compressions: ready of hub can be measured but not patched, as its matrices")
    values["patches"]["aird"]["compressions"] = ["magnitude", "wanda", "w4"]
    check_files(load_configuration(values))


@pytest.mark.parametrize(
    ("file", "said"),
    [("model.safetensors", "save_pretrained"), ("tokenizer_config.json", "no chat template; use the chat")],
)
def test_incomplete_model_folder(folder: Path, file: str, said: str) -> None:
    (folder / "model" / file).unlink()
    (line,) = mistakes(changed("models.hub.source", {"path": "model"}), files=True)
    assert said in line


@pytest.mark.parametrize("key", ["models.hub.source", "compressions.ready.sources"])
def test_a_model_folder_with_an_adapter_inside(folder: Path, key: str) -> None:
    (folder / "model/adapter_config.json").write_text("{}", encoding="utf-8")
    source = {"path": "model"}
    (line,) = mistakes(changed(key, {"hub": source} if "sources" in key else source), files=True)
    assert line.startswith(key) and "the folder holds an adapter beside the model" in line


def test_splits_that_only_the_file_knows(folder: Path) -> None:
    values = changed("prompt_sets.harmless.splits", ABSENT)
    values["prompt_sets"]["harmless"]["split_field"] = "part"
    values["directions"]["train"] = 100
    values["compressions"]["wanda"]["calibration"]["count"] = 301
    said = mistakes(values, files=True)
    assert (
        "directions.harmless: prompt set harmless has no split validation and no split test (it has: train); use one that its file has"
        in said
    )
    assert any(line.startswith("compressions.wanda.calibration.count:") and "at most 300" in line for line in said)


def test_repeated_key_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 1\nmodels:\n  a: {}\n  a: {}\nseed: 2\n", encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_yaml_strictly(path)
    said = str(caught.value).split("\n")
    assert [re.sub(r"^.*config\.yaml, ", "", line) for line in said] == [
        'line 5: key "seed" stands already in line 1; remove one',
        'line 4: key "a" stands already in line 3; remove one',
    ]


def test_text_that_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("models: [\n\t- a\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="cannot be read as YAML") as caught:
        load_yaml_strictly(path)
    assert "\n" not in str(caught.value)


# The files of the project


GRIDS = ("config.yaml", "config/embedded.yaml")


@pytest.mark.parametrize("name", GRIDS)
def test_grids_of_the_embedded_model_are_correct(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = PROJECT / name
    monkeypatch.chdir(PROJECT)
    check_files(load_configuration(load_yaml_strictly(path)), [path])


@pytest.mark.parametrize(("more", "repaired"), [("shipped_quick", 1), ("shipped_repairs", 8)])
def test_grids_of_the_shipped_model_are_correct(monkeypatch: pytest.MonkeyPatch, more: str, repaired: int) -> None:
    """The screen, and what is added to it, of what the screen finds to lose; no repair sees what is measured."""
    monkeypatch.chdir(PROJECT)
    values = load_yaml_strictly(PROJECT / "config/shipped.yaml")
    check_files(load_configuration(values))
    update_config(values, load_yaml_strictly(PROJECT / f"config/{more}.yaml"))
    configuration = load_configuration(values)
    check_files(configuration)
    compressions = configuration.compressions_of("qwen2.5-coder-0.5b-instruct")
    assert configuration.patches and len(compressions) == repaired
    assert not {"wanda-60", "wanda-2-4"} & set(compressions)  # broken


def test_the_quick_grid_shares_its_dear_nodes_with_the_whole_one() -> None:
    """The tuned model, its compressed checkpoints and their activations: going on after a demo makes none of them again."""
    quick, whole = (load_configuration(load_yaml_strictly(PROJECT / name)) for name in GRIDS)
    assert quick.seed == whole.seed and quick.compute_dtype == whole.compute_dtype
    assert quick.models == whole.models and quick.prompt_sets == whole.prompt_sets
    assert quick.compressions.items() <= whole.compressions.items()
    for name in ("harmful", "harmless", "train", "validation"):
        assert getattr(quick.directions, name) == getattr(whole.directions, name)
    assert whole.directions.scored is None and whole.directions.cosmic == "all"


def test_prompts_of_the_attacks_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    for name in GRIDS:
        values = load_yaml_strictly(PROJECT / name)
        update_config(values, load_yaml_strictly(PROJECT / "config/attacks.yaml"))
        check_files(load_configuration(values))


@pytest.mark.parametrize("name", ["repairs", "transfer"])
def test_additions_fit_the_embedded_grid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Snakemake merges from two files is correct, and adds cells without changing one."""
    monkeypatch.chdir(PROJECT)
    values = load_yaml_strictly(PROJECT / "config/embedded.yaml")
    default = load_configuration(values)
    update_config(values, load_yaml_strictly(PROJECT / "config" / f"{name}.yaml"))
    configuration = load_configuration(values)
    check_files(configuration)
    assert set(configuration.cells()) - set(default.cells())
    for patch, settings in default.patches.items():
        # A patch may come to more compressions, which changes no cell of the others.
        same = {"exclude": {"compressions"}}
        assert configuration.patches[patch].model_dump(**same) == settings.model_dump(**same)
    if name == "repairs":  # `transfer` leaves cells of that grid out
        assert set(default.cells()) < set(configuration.cells())
    assert configuration.compressions | default.compressions == configuration.compressions
    assert configuration.suites | default.suites == configuration.suites


def test_paper_grid_asks_for_its_commits_and_is_correct_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    values = load_yaml_strictly(PROJECT / "config/paper.yaml")
    unpinned = [name for name, model in values["models"].items() if model["source"]["revision"] == PLACEHOLDER_COMMIT]
    if unpinned:
        said = mistakes(values)
        assert [line.partition(":")[0] for line in said] == [f"models.{name}.source.revision" for name in unpinned]
    for name in unpinned:
        values["models"][name]["source"]["revision"] = COMMIT
    configuration = load_configuration(values)
    check_files(configuration)
    assert len(configuration.models) == 5
    # Plain and four patches of each compression; the original has no patch.
    assert len(list(configuration.cells())) == 5 * (1 + 5 * len(configuration.compressions))


def test_paper_grid_repeats_every_calibrated_compression_with_three_seeds() -> None:
    compressions = load_yaml_strictly(PROJECT / "config/paper.yaml")["compressions"]
    seeds: dict[str, list[int]] = {}
    for settings in compressions.values():
        if "calibration" in settings:
            seed = settings["calibration"].get("seed", 0)
            rest = {**settings, "calibration": {**settings["calibration"], "seed": None}}
            seeds.setdefault(canonical_json(rest), []).append(seed)
    assert len(seeds) >= 5
    assert all(sorted(numbers) == [0, 1, 2] for numbers in seeds.values()), seeds


@pytest.mark.parametrize("path", generated_files(), ids=str)
def test_generated_files_are_current(path: Path) -> None:
    current = PROJECT / path
    assert current.is_file() and current.read_text(encoding="utf-8") == generated_files()[path], (
        f"{path} is out of date; run `python -m aird.configuration.reference` in the project's folder"
    )


def test_reference_names_every_key_and_its_links_lead_somewhere() -> None:
    text = generated_files()[Path("config/README.md")]
    schema = Configuration.model_json_schema()
    tables = [schema, *schema["$defs"].values()]
    keys = {key for table in tables for key in table.get("properties", {})}
    assert [key for key in keys - {"recipe", "method", "kind"} if f"- `{key}` (" not in text] == []
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.*)$", text, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors
    assert text == generated_files()[Path("config/README.md")]


# What rules get


def reordered(value: Any) -> Any:
    """Return the value with the keys of every table in reverse order."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return value


def test_order_of_keys_changes_no_parameter() -> None:
    one, other = load_configuration(BASE), load_configuration(reordered(BASE))
    for table in ("prompt_sets", "models", "compressions", "patches", "suites"):
        for name, settings in getattr(one, table).items():
            dumped = [canonical_json(each.model_dump()) for each in (settings, getattr(other, table)[name])]
            # The order of drawn splits is the one thing in it that the file's order decides, not its text.
            assert dumped[0] == dumped[1]
    assert canonical_json(one.directions.model_dump()) == canonical_json(other.directions.model_dump())


def test_same_meaning_has_the_same_parameter() -> None:
    whole = load_configuration(changed("patches.aird.alpha", 1)).patches["aird"]
    assert whole == load_configuration(changed("patches.aird.alpha", 1.0)).patches["aird"]
    assert canonical_json(whole.model_dump()) == canonical_json(load_configuration(BASE).patches["aird"].model_dump())


def test_settings_survive_the_way_to_a_job() -> None:
    configuration = load_configuration(BASE)
    for table in ("prompt_sets", "models", "compressions", "patches", "suites"):
        for settings in getattr(configuration, table).values():
            read = type(settings).model_validate(json.loads(canonical_json(settings.model_dump())))
            assert read == settings


def test_parsing_imports_nothing_heavy() -> None:
    heavy = "torch transformers safetensors llmcompressor compressed_tensors lm_eval".split()
    heavy += "pandas numpy matplotlib huggingface_hub".split()
    modules = "aird.configuration.loading, aird.configuration.local_files, aird.configuration.reference"
    code = f"import sys, {modules}; aird.configuration.reference.generated_files()"
    code += f"; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_rules_quote_every_value_in_shell_commands() -> None:
    # Numbers, and flags that the rules themselves write, need no quotes.
    plain = {f"params.{name}" for name in ("seed", "lock", "calibration", "environment", "judgement", "hand_labels")}
    plain.add("resources.gpu")
    for path in sorted((PROJECT / "rules").glob("*.smk")):
        for block in re.findall(r"^    shell:\n((?:        .*\n)+)", path.read_text(encoding="utf-8"), re.M):
            fields = set(re.findall(r"\{((?:input|output|params|log|wildcards|resources)[^{}]*)\}", block))
            assert {field for field in fields if not field.endswith(":q")} <= plain, f"{path.name}: quote with :q"

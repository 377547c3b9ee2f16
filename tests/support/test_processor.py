"""Which type a processor computes in: measured, recorded, followed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aird.evaluation.engine import ServerSettings
from aird.evaluation.engines.vllm import VllmSettings, _arguments
from aird.models.loading import load_model
from aird.support import processor
from aird.support.processor import STORED, WORTH_WIDENING, computes_in, follow, measure_arithmetic, processor_name


@pytest.fixture(autouse=True)
def nothing_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let every test begin as a process does, with a cache folder of its own."""
    monkeypatch.setattr(processor, "_followed", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield


def record_of(**computes: str) -> dict[str, Any]:
    return {"computes_in": {name: name for name in STORED} | computes}


def rates(monkeypatch: pytest.MonkeyPatch, **gigaflops: float) -> None:
    rates = {name: value * 1e9 for name, value in gigaflops.items()}
    monkeypatch.setattr(processor, "_rates", lambda torch: rates)


def test_the_measurement_decides() -> None:
    record = measure_arithmetic()
    speed = record["gigaflops"]
    assert set(speed) == set(STORED) and min(speed.values()) > 0
    for stored in ("bfloat16", "float16"):
        faster = speed["float32"] / speed[stored]
        # Rates are rounded in the record.
        if abs(faster - WORTH_WIDENING) > 0.05:
            assert record["computes_in"][stored] == ("float32" if faster > WORTH_WIDENING else stored)
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
    ("bfloat16", "float32", "expected"),
    [
        (70.0, 126.0, "float32"),  # instructions for bfloat16, and yet slower
        (214.0, 96.0, "bfloat16"),
        (100.0, 105.0, "bfloat16"),  # as good as equal: half of the memory
        (1.0, 100.0, "float32"),  # emulated
    ],
)
def test_the_faster_type_is_taken(
    monkeypatch: pytest.MonkeyPatch, bfloat16: float, float32: float, expected: str
) -> None:
    rates(monkeypatch, bfloat16=bfloat16, float16=1.0, float32=float32)
    record = measure_arithmetic()
    assert record["computes_in"] == {"bfloat16": expected, "float16": "float32", "float32": "float32"}
    assert record["gigaflops"] == {"bfloat16": bfloat16, "float16": 1.0, "float32": float32}


def test_the_configuration_wins_over_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, bfloat16=1.0, float16=1.0, float32=100.0)
    assert measure_arithmetic("checkpoint")["computes_in"] == {name: name for name in STORED}
    rates(monkeypatch, bfloat16=100.0, float16=100.0, float32=1.0)
    assert set(measure_arithmetic("float32")["computes_in"].values()) == {"float32"}


@pytest.mark.parametrize("computed", ["bfloat16", "float32"])
def test_models_and_servers_follow_the_record(original: Path, computed: str) -> None:
    follow(record_of(bfloat16=computed))
    assert load_model(original).dtype == getattr(torch, computed)
    arguments = _arguments(VllmSettings(), original, ServerSettings(64), None, 1, "mark", on_cpu=True)
    assert f"--dtype={computed}" in arguments
    assert "--dtype=auto" in _arguments(VllmSettings(), original, ServerSettings(64), None, 1, "mark", on_cpu=False)


def test_the_command_measures_once_and_keeps_the_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rates(monkeypatch, bfloat16=1.0, float16=1.0, float32=100.0)
    assert computes_in("bfloat16") == "float32"
    # Another measurement would say otherwise: the next process does not make one.
    rates(monkeypatch, bfloat16=100.0, float16=1.0, float32=1.0)
    monkeypatch.setattr(processor, "_followed", {})
    assert computes_in("bfloat16") == "float32"
    # A home that moved to another processor is no record of this one.
    (kept,) = (tmp_path / "cache").rglob("*.json")
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "processor": "another"}))
    monkeypatch.setattr(processor, "_followed", {})
    assert computes_in("bfloat16") == "bfloat16"


@pytest.mark.parametrize("content", ["", "[1]", "{}"])
def test_a_damaged_record_is_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    path = tmp_path / "cache/aird/arithmetic.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    rates(monkeypatch, bfloat16=1.0, float16=1.0, float32=100.0)
    assert computes_in("bfloat16") == "float32"
    assert json.loads(path.read_text())["processor"] == processor_name()


def test_a_type_that_nobody_measured_is_kept() -> None:
    follow(record_of())
    assert computes_in("float8_e4m3fn") == "float8_e4m3fn"


def test_unknown_systems_have_a_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A processor\n", encoding="utf-8")
    assert processor_name(tmp_path / "cpuinfo") == "A processor"
    assert processor_name(tmp_path / "absent")

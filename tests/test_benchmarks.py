"""The yardstick scores as ours do, and the benchmarks run on any model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from aird.directions.activations import capture
from aird.directions.candidate_scores import score_candidates
from aird.directions.candidates import difference_in_means
from aird.settings.directions import Directions
from benchmarks import adapter, demo, measure, packs, replies, scoring
from benchmarks import capture as capturing
from benchmarks.measure import Result, block_operations, fitted_exponent, packed_tokens, vocabulary_operations
from benchmarks.published_scoring import published_scores
from benchmarks.workload import Workload

REFUSAL_TOKENS = [40, 7]
FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def work(llama: Any, prompts: list[list[int]]) -> Workload:
    harmful, harmless = prompts[::2], prompts[1::2]
    means = (capture(llama, each, 5, REFUSAL_TOKENS)[0] for each in (harmful, harmless))
    settings = Directions(harmful="harmful", harmless="harmless", minimum_induce=-1000.0)
    return Workload("tiny", llama, difference_in_means(*means), harmful, harmless, prompts, REFUSAL_TOKENS, settings)


def test_the_yardstick_gives_the_same_scores(work: Workload) -> None:
    model = work.model.double()
    prompts = work.harmful, work.harmless, work.refusal_tokens
    ours = score_candidates(model, work.candidates, *prompts, work.settings)
    sites = [(layer, position) for layer in (1, 2) for position in range(5)]
    for site, found in published_scores(model, work.candidates, *prompts, sites).items():
        for name, value in found.items():
            assert ours[name][site].mean().item() == pytest.approx(value, abs=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the benchmarks' clock count operations: one a second on this machine, whatever else runs on it."""
    with FlopCounterMode(display=False) as counter:
        monkeypatch.setattr(measure, "clock", counter.get_total_flops)
        for module in (scoring, capturing, packs, replies):
            monkeypatch.setattr(module, "matrix_rate", lambda dtype: 1.0)
        yield


def check(result: Result, ratio: float, fraction: float) -> None:
    """Check how many times its work the yardstick does, and that it is near its floor, never below."""
    assert result.ratio is not None and result.floor_fraction is not None
    assert result.ratio > ratio, result
    assert fraction < result.floor_fraction <= 1, result


def test_scoring_does_a_third_of_the_published_work(work: Workload, counted: None) -> None:
    (found,) = scoring.run(work)
    check(found, 3, 0.8)
    assert "20 candidates" in found.measured
    sites = re.search(r"site (\(.*?\)) by published, published (\(.*?\));", found.measured)
    assert sites and sites[1] == sites[2]
    difference = re.search(r"in float32 (\S+) \((\d+) compared\)", found.measured)
    assert difference and float(difference[1]) < 1e-5 and int(difference[2]) > 1


def test_capture_computes_nothing_beside_the_bare_pass(work: Workload, counted: None) -> None:
    (found,) = capturing.run(work)
    check(found, 0.99, 0.9)
    assert found.ratio == pytest.approx(1, abs=0.01)
    assert "for 5 prompts (117 tokens in 1 packs)" in found.measured


def test_a_pack_of_all_prompts_computes_least(work: Workload, counted: None) -> None:
    (found,) = packs.run(work)
    check(found, 0.99, 0.9)


def test_the_plain_way_gives_the_same_replies_and_gradient_for_more_work(
    work: Workload, counted: None, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "checkpoint", lambda: original)
    made, learnt = replies.run(work)
    assert f"{len(work.train)} replies are the same" in made.measured
    assert learnt.measured.endswith("cosine of the gradients 1.0000")
    check(made, 1.5, 0.8)
    check(learnt, 2, 0.5)


def test_the_floor_of_a_run_counts_each_matrix_and_a_shared_prefix_once(llama: Any) -> None:
    shape = demo.model_shape(llama.config.to_dict())
    assert 2 * shape.block == block_operations(llama)
    assert 2 * shape.vocabulary * shape.width == vocabulary_operations(llama)
    assert packed_tokens([[1, 2, 3, 4], [1, 2, 5], [1, 2, 6, 7, 8]]) == 2 + 2 + 1 + 3


def test_an_exponent_is_that_of_a_power() -> None:
    assert fitted_exponent([1.0, 2.0, 8.0], [5.0, 20.0, 320.0]) == pytest.approx(2.0)


def test_an_adapter_reads_only_its_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On checkpoints of a few MiB: the edited shard is written, the others are links."""
    monkeypatch.setattr(adapter, "RESULTS", tmp_path)
    sizes = {"HIDDEN": 256, "INTERMEDIATE": 512, "VOCABULARY": 64}
    for name, value in sizes.items():
        monkeypatch.setattr(adapter, name, value)
    shapes = {name: tuple(256 if size == 4096 else 512 for size in shape) for name, shape in adapter.SIZES.items()}
    monkeypatch.setattr(adapter, "SIZES", shapes)
    made, merged = adapter.run()
    assert "the edited matrices are" in made.measured
    assert "the other shards are links" in merged.measured


def test_the_results_are_the_same_in_both_files() -> None:
    rows = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    table = (FOLDER / "results.md").read_text(encoding="utf-8")
    assert rows
    for row in rows:
        assert {"name", "ratio", "peak_memory_mb", "floor_fraction"} <= row.keys()
        assert f"| {row['name']} |" in table
        assert row["measured"] in table

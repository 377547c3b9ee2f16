"""The yardstick scores as ours do, and the benchmarks run on any model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aird.activations import capture, difference_in_means
from aird.direction_scores import score_candidates
from aird.settings.directions import Directions
from benchmarks import adapter, demo, packs, replies, scoring
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


def test_scoring_and_capture_are_compared_on_any_model(work: Workload) -> None:
    (scores,) = scoring.run(work)
    assert "20 candidates" in scores.measured
    assert scores.ratio is not None
    assert scores.ratio > 0
    for found in (*capturing.run(work), *packs.run(work)):
        assert isinstance(found, Result)
        assert found.ratio is not None
        assert found.ratio > 0


def test_the_plain_way_gives_the_same_replies_and_gradient(
    work: Workload, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "checkpoint", lambda: tiny_folder("llama"))
    made, learnt = replies.run(work)
    assert f"{len(work.train)} replies are the same" in made.measured
    assert learnt.measured.endswith("cosine of the gradients 1.0000")
    for found in (made, learnt):
        assert found.ratio is not None
        assert found.ratio > 0


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

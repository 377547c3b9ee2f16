"""Batches that grow while it pays, and halve where memory ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from aird.directions.activations import capture
from aird.directions.candidate_scores import score_candidates
from aird.directions.candidates import difference_in_means
from aird.inference import packing
from aird.inference.batching import Batches, is_out_of_memory
from aird.inference.packing import last_logits, make_packs, run_packed
from aird.settings.directions import Directions

CPU, OTHER = torch.device("cpu"), torch.device("meta")
FAILURES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    MemoryError(),
]


class Machine:
    """A machine with a memory, on which a batch takes `start + items * each` seconds."""

    def __init__(self, memory: int, start: float, each: float, failure: BaseException) -> None:
        self.memory, self.start, self.each, self.failure = memory, start, each, failure
        self.now = 0.0
        self.sizes: list[int] = []

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.sizes.append(len(batch))
        if len(batch) > self.memory:
            raise self.failure
        self.now += self.start + len(batch) * self.each
        return [item * item for item in batch]


def run(batches: Batches, machine: Machine, items: range) -> list[int]:
    return [value for _, values in batches.run(items, machine) for value in values]


def test_a_batch_grows_while_it_pays_and_then_stays() -> None:
    machine = Machine(10**9, start=1.0, each=0.1, failure=MemoryError())
    batches = Batches(1, OTHER, lambda: machine.now)
    assert run(batches, machine, range(1000)) == [item * item for item in range(1000)]
    # Items a second: 64 at a time 8.6, 128 at a time 9.3, which is less than a tenth more.
    assert machine.sizes[:8] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert set(machine.sizes[8:-1]) == {64}
    assert not batches.grows


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_batch_grows_until_it_does_not_fit(failure: BaseException) -> None:
    machine = Machine(20, start=100.0, each=0.1, failure=failure)
    assert run(Batches(1, OTHER, lambda: machine.now), machine, range(200)) == [item * item for item in range(200)]
    assert machine.sizes[:7] == [1, 2, 4, 8, 16, 32, 16]
    assert set(machine.sizes[7:-1]) == {16}


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_processor_keeps_its_size_but_halves_too(failure: BaseException) -> None:
    machine = Machine(10, start=1.0, each=0.1, failure=failure)
    assert run(Batches(16, CPU, lambda: machine.now), machine, range(40)) == [item * item for item in range(40)]
    assert machine.sizes == [16, 8, 8, 8, 8, 8]


def test_the_weights_of_items_fill_a_batch() -> None:
    batches = Batches(10, CPU)
    filled = [list(batch) for batch, _ in batches.run(range(5), list, [4, 6, 1, 30, 2])]
    assert filled == [[0, 1], [2], [3], [4]]


def test_what_does_not_fit_alone_is_an_error_and_other_errors_are_their_own() -> None:
    machine = Machine(0, 1.0, 1.0, FAILURES[0])
    with pytest.raises(RuntimeError, match="does not hold a single item") as caught:
        run(Batches(8, CPU), machine, range(8))
    assert caught.value.__cause__ is FAILURES[0]
    assert machine.sizes == [8, 4, 2, 1]
    other = Machine(0, 1.0, 1.0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        run(Batches(8, CPU), other, range(8))
    assert other.sizes == [8]
    assert not is_out_of_memory(ValueError("out of memory"))


def limit(model: Any, too_much: Callable[[torch.Tensor], bool], failure: BaseException) -> list[tuple[int, ...]]:
    """Let the model's last block run out of memory on inputs that are too much; return the shapes that were tried."""
    tried = []

    def check(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        tried.append(tuple(args[0].shape[:2]))
        if too_much(args[0]):
            raise failure

    model.model.layers[-1].register_forward_pre_hook(check)
    return tried


@pytest.mark.parametrize("failure", FAILURES[:2], ids=lambda failure: type(failure).__name__)
def test_a_capture_that_does_not_fit_goes_on_in_halves(llama: Any, prompts: list[list[int]], failure: Any) -> None:
    expected = capture(llama, prompts, 5, [40])
    tried = limit(llama, lambda states: states.shape[1] > 70, failure)
    halved = capture(llama, prompts, 5, [40])
    assert max(tokens for _, tokens in tried) > 70  # it did not fit at first
    for value, wanted in zip(halved, expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)
    assert not any(module._forward_hooks for module in llama.modules())


def test_scores_that_do_not_fit_go_on_in_fewer_rows(llama: Any, prompts: list[list[int]]) -> None:
    harmful, harmless = prompts[::2], prompts[1::2]
    candidates = difference_in_means(*(capture(llama, each, 5, [40])[0] for each in (harmful, harmless)))
    settings = Directions(harmful="harmful", harmless="harmless", minimum_induce=-1000.0)
    expected = score_candidates(llama, candidates, harmful, harmless, [40], settings)
    tried = limit(llama, lambda states: states.shape[0] > 2, FAILURES[0])
    halved = score_candidates(llama, candidates, harmful, harmless, [40], settings)
    assert max(rows for rows, _ in tried) == 5
    for name, values in expected.items():
        torch.testing.assert_close(halved[name], values, atol=1e-4, rtol=0, equal_nan=True)


def test_a_growth_is_taken_back_where_packs_are_not_proven(
    llama: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, where packs double; here a model that computes none of more than 700 tokens."""
    clock = iter(range(10**6))  # every pack takes one second, so twice as large is twice as fast
    monkeypatch.setattr(packing, "Batches", lambda size, _: Batches(size, OTHER, lambda: next(clock)))

    def too_long(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if args[0].shape[1] > 700:
            raise ValueError("positions end at 700")

    llama.model.layers[0].register_forward_pre_hook(too_long)
    packs = [pack for pack, _ in run_packed(llama, prompts * 40, lambda pack: last_logits(llama, pack))]
    assert sorted(index for pack in packs for index in pack.prompts) == list(range(5 * 40))
    assert 400 < max(len(pack.token_ids) for pack in packs) <= 512


def test_packs_of_a_run_are_those_of_a_plan(llama: Any, prompts: list[list[int]]) -> None:
    many = prompts * 12
    packs = [pack for pack, _ in run_packed(llama, many, lambda pack: None)]
    assert len(packs) > 1
    assert [pack.prompts for pack in packs] == [pack.prompts for pack in make_packs(many, 512)]

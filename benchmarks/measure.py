"""What every benchmark shares: one result, this machine's rates, time and peak memory of a piece of work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from aird.inference.packing import Packer
from aird.models.structure import decoder_blocks

Value = TypeVar("Value")


@dataclass(frozen=True)
class Result:
    """One row of benchmarks/results.md.

    Attributes:
        name: what was measured, and on which size.
        ratio: how many times faster than what it is compared with; for growth, the fitted exponent.
        peak_memory_mb: of the measured process, MiB.
        floor_fraction: the time that the arithmetic and the bytes need on this machine, over the time it took.
        measured: the numbers behind it, in words.
    """

    name: str
    ratio: float | None
    peak_memory_mb: float | None
    floor_fraction: float | None
    measured: str


def clock() -> float:
    """Return seconds: the processor's own time of this process, which other work on the machine does not lengthen.

    On a GPU it is the wall's, as there the processor waits.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def timed(work: Callable[[], Value]) -> tuple[Value, float]:
    """Return what the work returns and its seconds, by `clock`."""
    start = clock()
    value = work()
    return value, clock() - start


def reset_peak() -> None:
    """Let the process's peak memory start again from what it holds now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Return the peak resident memory since `reset_peak`, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def matrix_rate(dtype: torch.dtype, size: int = 1024, seconds: float = 1.0) -> float:
    """Return the floating-point operations a second, by `clock`, in products of large square matrices."""
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        _, taken = timed(lambda: [left @ right for _ in range(4)])
        best = max(best, 4 * 2 * size**3 / taken)
    return best


def memory_rate(megabytes: int = 256, seconds: float = 0.5) -> float:
    """Return the bytes a second, by `clock`, that are read from memory."""
    data = torch.ones(megabytes << 17, dtype=torch.int64)
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        _, taken = timed(data.sum)
        best = max(best, data.nbytes / taken)
    return best


def block_operations(model: nn.Module) -> int:
    """Return the floating-point operations of one token in one decoder block, without attention's products."""
    block = decoder_blocks(model)[0]
    return 2 * sum(module.weight.numel() for module in block.modules() if isinstance(module, nn.Linear))


def vocabulary_operations(model: nn.Module) -> int:
    """Return the floating-point operations of one token's logits."""
    return 2 * model.get_output_embeddings().weight.numel()  # type: ignore[operator]


def packed_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Return the tokens of prompts in one pack: those that they share at their start count once."""
    packer = Packer(prompts)
    return packer.prefix_length + sum(packer.own_lengths)


def fitted_exponent(sizes: list[float], values: list[float]) -> float:
    """Return the slope of log value over log size, by least squares."""
    x, y = (torch.tensor(numbers, dtype=torch.float64).log() for numbers in (sizes, values))
    x, y = x - x.mean(), y - y.mean()
    return ((x @ y) / (x @ x)).item()

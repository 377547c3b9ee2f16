"""Which type this machine's processor multiplies matrices in: measured once, written down, then followed by all.

The flags of a processor do not tell: one with bfloat16 instructions may multiply float32 twice as fast, another half
as fast. So short products are timed in each type that checkpoints are stored in. The workflow keeps the record with
its results (results/environments/arithmetic.json), and the `aird` command in the user's cache folder: a second, noisy
measurement never changes what a finished run was computed in. On a GPU a checkpoint's own type is taken.

Nothing heavy is imported here before something is measured.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypedDict

from aird.support.files import read_json, write_json

Choice = Literal["measured", "checkpoint", "float32"]  # of the configuration's `compute_dtype`

CPUINFO = Path("/proc/cpuinfo")
STORED = ("bfloat16", "float16", "float32")  # types of checkpoints
# Rows, inner size, columns: a small product that tells what is emulated, then tokens of one pack through a small
# model's MLP, up and down.
SHAPES = ((64, 576, 576), (512, 576, 1536), (512, 1536, 576))
ROUNDS = 8
EMULATED = 0.25  # a type this much slower than float32 is not measured further: seconds would pass
# The checkpoint's own type needs half of the memory, and noise should not decide.
WORTH_WIDENING = 1.1

_followed: dict[str, str] = {}


class Arithmetic(TypedDict):
    """What a processor computes fast, and what follows."""

    compute_dtype: Choice
    processor: str
    torch: str  # version
    gigaflops: dict[str, float]  # type to 1e9 operations a second of one core
    computes_in: dict[str, str]  # stored type to the type to compute in


def measure_arithmetic(choice: Choice = "measured") -> Arithmetic:
    """Measure what this processor computes fast, and decide what follows.

    Args:
        choice: `measured` computes in float32 where that is faster than the checkpoint's own type; `checkpoint`
            takes the checkpoint's type, and `float32` that type, whatever the speed.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = _rates(torch)
    finally:
        torch.set_num_threads(threads)
    widened = {
        stored: choice == "float32" or (choice == "measured" and rates["float32"] > WORTH_WIDENING * rates[stored])
        for stored in STORED
    }
    return {
        "compute_dtype": choice,
        "processor": processor_name(),
        "torch": version("torch"),
        "gigaflops": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
        "computes_in": {stored: "float32" if widened[stored] else stored for stored in STORED},
    }


def _rates(torch: Any) -> dict[str, float]:
    """Return operations a second per type, on the largest shape that it was measured on.

    The best of a few rounds, types in turns, so that other work on the machine disturbs all alike.
    """
    rates: dict[str, float] = {}
    for rows, inner, columns in SHAPES:
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        measured = [name for name in STORED if rates.get(name, 1.0) >= EMULATED * rates.get("float32", 1.0)]
        pairs = {name: [factor.to(getattr(torch, name)) for factor in (left, right)] for name in measured}
        best = dict.fromkeys(measured, float("inf"))
        for _ in range(ROUNDS):
            for name, (first, second) in pairs.items():
                start = time.perf_counter()
                first @ second
                best[name] = min(best[name], time.perf_counter() - start)
        rates |= {name: 2.0 * rows * inner * columns / best[name] for name in measured}
    return rates


def follow(record: Arithmetic) -> None:
    """From now on this process computes as a record of `measure_arithmetic` says."""
    _followed.update(record["computes_in"])


def computes_in(stored: str) -> str:
    """Return the type that a checkpoint is to be computed in on this processor, from the type it is stored in.

    Where no record was given to `follow`, the user's cache folder has one, or gets one now.
    """
    if not _followed:
        follow(_own_record(_cache_file()))
    return _followed.get(stored, stored)


def _own_record(path: Path) -> Arithmetic:
    """Return the record in a file; where there is none of this processor and PyTorch, measure and write it."""
    try:
        record: Arithmetic = read_json(path)
        if (record["processor"], record["torch"]) == (processor_name(), version("torch")):
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    record = measure_arithmetic()
    # Where the home cannot be written to, the next process measures again.
    with contextlib.suppress(OSError):
        write_json(path, record)
    return record


def _cache_file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "aird" / "arithmetic.json"


def processor_name(description: Path = CPUINFO) -> str:
    """Return the processor's product name, or else its architecture."""
    return next(iter(_said("model name", description)), platform.machine())


def processor_flags(description: Path = CPUINFO) -> frozenset[str]:
    """Return the instruction sets of the processor by Linux' names, such as "avx512f"; none where it does not say."""
    return frozenset(next(iter(_said("flags", description)), "").split())


def _said(key: str, description: Path) -> list[str]:
    try:
        lines = description.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.lower().startswith(key)]

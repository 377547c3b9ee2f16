"""How much runs at once: as much as pays, and never more than fits.

On an accelerator a batch doubles while its items get clearly cheaper. On a CPU it keeps its first
size: a few hundred tokens already fill its matrix units (benchmarks/results.md), and a size that
followed the clock would change the last bits of the results from run to run. Anywhere a batch that
does not fit is halved, and the work goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

# A batch twice as large has to make its items this much cheaper, or growing ends.
WORTHWHILE = 1.1
# What PyTorch's allocators say on devices that have no exception of their own for it.
MESSAGES = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the device's memory, or the machine's, did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error).lower() for message in MESSAGES)


class Batches:
    """A batch size that finds itself while the work is done.

    Attributes:
        size: what a batch may weigh now.
        grows: whether it may still grow.
    """

    def __init__(self, size: int, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start.

        Args:
            size: of the first batch, in the unit of the weights.
            device: where the work runs.
            clock: returns seconds.
        """
        self.size = size
        self.grows = device.type != "cpu"
        self._device = device
        self._clock = clock
        self._best = 0.0

    def run(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Result], weights: Sequence[int] | None = None
    ) -> Iterator[tuple[Sequence[Item], Result]]:
        """Yield (batch, work(batch)) until all items are done, in their order.

        Args:
            items: what is to be done.
            work: does some of it; it may be asked again for a part of what did not fit.
            weights: of each item; 1 each by default. A batch holds at least one item.

        Raises:
            RuntimeError: a single item does not fit; the device's own error is its cause.
        """
        weights = weights or [1] * len(items)
        start = 0
        while start < len(items):
            end, weight = start + 1, weights[start]
            while end < len(items) and weight + weights[end] <= self.size:
                weight += weights[end]
                end += 1
            batch = items[start:end]
            full = end < len(items)  # the last one may be small, and then says nothing about its size
            before = self._clock()
            try:
                result = work(batch)
                if self.grows:
                    self._synchronise()
                failure = None
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failure = f"{type(error).__name__}: {error}"
                if len(batch) == 1:
                    raise RuntimeError(
                        "the memory of this machine does not hold a single item of the work; free some, or "
                        "take a smaller model or shorter prompts"
                    ) from error
            if failure is not None:
                # Outside the handler, where the traceback no longer holds the tensors of the failed pass.
                self._halve(weight, failure)
                continue
            if self.grows and full:
                self._learn(weight / max(self._clock() - before, 1e-9))
            yield batch, result
            start = end

    def _learn(self, rate: float) -> None:
        if rate > WORTHWHILE * self._best:
            self._best = rate
            self.size *= 2
        else:
            self.shrink()

    def shrink(self) -> None:
        """Take back the last growth, and grow no more."""
        self.grows = False
        self.size = max(1, self.size // 2)

    def _halve(self, weight: int, failure: str) -> None:
        self.size = max(1, min(self.size, weight) // 2)
        self.grows = False
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("a batch of %d did not fit (%s); going on with %d", weight, failure.splitlines()[0], self.size)

    def _synchronise(self) -> None:
        module: Any = getattr(torch, self._device.type, None)
        if hasattr(module, "synchronize"):
            module.synchronize(self._device)

"""How far a command is, on its error stream: a bar on a terminal, elsewhere a line a minute.

    for batch in progress.over(batches, "prompts", sizes):
        ...

Loops may lie in each other: the outermost is shown, and an inner one says how much of the outer one's item is done.
Nothing is shown unless a command asks for it (`shown`): jobs of the workflow have their own display. What is shown are
numbers, never the text of a prompt or of an answer.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TextIO, TypeVar

Item = TypeVar("Item")

MINUTE = 60.0  # between two lines, seconds
REDRAW = 0.2  # between two looks at what has changed, seconds
WIDTH = 24  # of a bar, characters
ERASE = "\r\x1b[K"

_clock = time.monotonic


@dataclass
class Count:
    """How far one loop is.

    Attributes:
        unit: what is counted, in the plural.
        total, done: of all items.
        at_hand: size of the item that is worked on.
        first: what was done before the loop began, and says nothing about its speed.
        began: when it began, seconds of the clock.
    """

    unit: str
    total: int
    done: int = 0
    at_hand: int = 0
    first: int = field(init=False)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        """Remember the beginning."""
        self.first, self.began = self.done, _clock()

    def add(self, size: int = 1) -> None:
        """Note that so much more is done."""
        self.done, self.at_hand = self.done + size, 0


_open: list[Count] = []  # the outermost first


@contextlib.contextmanager
def count(unit: str, total: int, done: int = 0) -> Iterator[Count]:
    """Yield the count of a loop that calls `add` itself.

    Args:
        unit: what is counted, in the plural.
        total: of all items.
        done: of these before the loop.
    """
    place = len(_open)
    _open.append(Count(unit, total, done))
    try:
        yield _open[place]
    finally:
        del _open[place:]


def over(items: Sequence[Item], unit: str, sizes: Sequence[int] | None = None, done: int = 0) -> Iterator[Item]:
    """Yield the items of a loop, and count them.

    Args:
        items: what the loop runs over.
        unit: what is counted, in the plural.
        sizes: of each item in that unit; 1 each by default.
        done: what was done before, in that unit.
    """
    sizes = [1] * len(items) if sizes is None else sizes
    with count(unit, done + sum(sizes), done) as counted:
        for item, size in zip(items, sizes, strict=True):
            counted.at_hand = size
            yield item
            counted.add(size)


def position(counts: Sequence[Count]) -> float:
    """Return how much of the outermost loop is done, the part of its item at hand included, in its unit."""
    share = 0.0
    for each in reversed(counts):
        reached = min(each.done + share * each.at_hand, each.total)
        share = reached / max(1, each.total)
    return reached if counts else 0.0


def describe(counts: Sequence[Count], now: float) -> str:
    """Return in words how far the outermost loop is, and how long the rest takes at its speed so far."""
    outer, reached = counts[0], position(counts)
    text = f"{outer.done} of {outer.total} {outer.unit}, {100 * reached / max(1, outer.total):.0f}%"
    if reached <= outer.first:
        return text
    left = (now - outer.began) / (reached - outer.first) * (outer.total - reached)
    return f"{text}, about {duration(left)} left"


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours, whichever is read best."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Display:
    """Shows the open loops on a stream."""

    def __init__(self, stream: TextIO) -> None:
        """Take the stream; a terminal gets a bar."""
        self.is_terminal = stream.isatty()
        self._stream, self._lock = stream, threading.RLock()
        self._began = self._last = _clock()
        self._drawn = False

    def draw(self) -> None:
        """Show how far it is, where that is due."""
        with self._lock, contextlib.suppress(OSError, ValueError):  # nobody reads the stream any more
            counts, now = list(_open), _clock()
            if self.is_terminal:
                self._draw_bar(counts, now)
            elif now - self._last >= MINUTE:
                self._last = now
                text = describe(counts, now) if counts else f"at work for {duration(now - self._began)}"
                print(f"  {text}", file=self._stream, flush=True)

    def _draw_bar(self, counts: Sequence[Count], now: float) -> None:
        if not counts:
            self.erase()
            return
        filled = int(WIDTH * position(counts) / max(1, counts[0].total))
        text = f"  [{'#' * filled}{' ' * (WIDTH - filled)}] {describe(counts, now)}"
        print(ERASE + text[: shutil.get_terminal_size().columns - 1], end="", file=self._stream, flush=True)
        self._drawn = True

    def erase(self, _: object = None) -> bool:
        """Take the bar away, so that something else can be written; always true, as a filter of a log has to be."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            if self._drawn:
                print(ERASE, end="", file=self._stream, flush=True)
                self._drawn = False
        return True


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Show on the error stream how far this process is while the context is open."""
    display, ended = Display(sys.stderr), threading.Event()

    def work() -> None:
        while not ended.wait(REDRAW):
            display.draw()

    handlers = logging.getLogger().handlers if display.is_terminal else []
    for handler in handlers:
        handler.addFilter(display.erase)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        display.erase()
        for handler in handlers:
            handler.removeFilter(display.erase)

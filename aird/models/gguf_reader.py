"""One parse of a GGUF file's header for all who read it: here, and in Transformers, which parses it at every call.

The reader of the `gguf` package makes several arrays that know of the mapped file for each token of a vocabulary, which
takes ten seconds for 150,000 tokens and their merges. This one slices plain arrays.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from gguf.gguf_reader import GGUFReader

ARRAY, STRING = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING


class _Reader(GGUFReader):
    """The package's reader with plain arrays; the fields of an array hold its items without their lengths."""

    @property  # type: ignore[override]
    def data(self) -> np.ndarray:
        """The file's bytes, mapped."""
        return self._plain

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._plain = np.asarray(mapped)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        kind = gguf.GGUFValueType(int(self._get(orig_offs, np.uint32)[0])) if raw_type == ARRAY else None
        if kind is None or kind == ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        head = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
        count, start = int(head[1][0]), orig_offs + 12
        if kind == STRING:
            items, end = self._strings(start, count)
        else:
            values = self._get(start, self.gguf_scalar_to_np[kind], count)
            items, end = list(values.reshape(-1, 1)), start + values.nbytes
        if len(items) != count:
            raise ValueError("an array ends behind the end of the file")
        return end - orig_offs, [*head, *items], list(range(2, 2 + count)), [ARRAY, kind] if count else [ARRAY]

    def _strings(self, start: int, count: int) -> tuple[list[np.ndarray], int]:
        """Return strings as bytes, and where they end; fewer where the file ends before."""
        order: Literal["little", "big"] = "little" if self.endianess == gguf.GGUFEndian.LITTLE else "big"
        content, place = self.data.data, start
        items: list[np.ndarray] = []
        while len(items) < count and place + 8 <= len(content):
            begin = place + 8
            place = begin + int.from_bytes(content[place:begin], order)
            items.append(self.data[begin:place])
        return items, place


def reader_of(path: Path | str) -> GGUFReader:
    """Return the parsed header of a GGUF file, with its mapped tensors; the last one is kept.

    Raises:
        Exception: whatever the numbers of a damaged file lead to.
    """
    file = Path(path).resolve()  # Transformers is given a link to it
    return _parsed(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _parsed(path: Path, changed: int) -> GGUFReader:
    return _Reader(path)


@contextlib.contextmanager
def shared_header() -> Iterator[None]:
    """Let Transformers take the parsed header, and make its table of tensor names once and not for every module."""
    theirs = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    gguf.GGUFReader = reader_of  # type: ignore[misc,assignment]
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    try:
        yield
    finally:
        for name, value in theirs.items():
            setattr(gguf, name, value)

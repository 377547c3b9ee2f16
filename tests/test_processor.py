"""Which processors compute in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest

from aird.processor import multiplies_bfloat16


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu sse avx2 avx512f avx512_bf16 fma", True),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu sse avx2 fma", False),
        ("model name\t: bf16 avx512_bf16", False),
        ("", False),
    ],
)
def test_flags(tmp_path: Path, line: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n", encoding="utf-8")
    assert multiplies_bfloat16(tmp_path / "cpuinfo") is expected


def test_unknown_systems_do_not(tmp_path: Path) -> None:
    assert multiplies_bfloat16(tmp_path / "absent") is False

"""What this machine's processor is, and what it computes fast. Nothing heavy is imported here."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

# Linux's names of the instructions that multiply bfloat16 matrices (x86 AVX-512 and AMX, Arm).
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@functools.cache
def multiplies_bfloat16(description: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the processor multiplies bfloat16 matrices itself.

    Elsewhere libraries emulate it, at a tenth of float32's speed. False where it cannot be found out.
    """
    flags = {
        flag for line in _lines(description) if line.lower().startswith(("flags", "features")) for flag in line.split()
    }
    return bool(flags & BFLOAT16_FLAGS)


def processor_name(description: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's product name, or else its architecture."""
    names = [line.partition(":")[2].strip() for line in _lines(description) if line.lower().startswith("model name")]
    return names[0] if names else platform.machine()


def _lines(description: Path) -> list[str]:
    try:
        return description.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []

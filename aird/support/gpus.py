"""GPUs of its own for each job on a machine that has several.

Snakemake counts GPUs but does not say which ones a job gets, so each job takes its number by
lock files that the kernel releases when the job ends. It does so too where it wants all that it
sees: another run may want them as well. Schedulers hand out GPUs themselves: a job of theirs
that sees no more than it asks for takes nothing. The command `aird` takes its GPUs in the same way.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aird.support.lifetime import take_lock

logger = logging.getLogger(__name__)

# Set in the jobs of schedulers that hand out GPUs: Slurm and Kubernetes.
SCHEDULED = ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")
VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
POLL_SECONDS = 1.0

_own: list[str] = []  # ids of the GPUs that are this process's


def visible_gpus() -> list[str]:
    """Return the ids of the GPUs that this process may use: CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists."""
    if VISIBLE in os.environ:
        return [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip() not in ("", "-1")]
    return listed_gpus()


def listed_gpus() -> list[str]:
    """Return the ids of the GPUs that nvidia-smi lists; none where it is missing or fails."""
    return [str(index) for index in range(len(gpu_names()))]


def gpu_names() -> list[str]:
    """Return the product names of the GPUs that nvidia-smi lists, in its order; none where it is missing or fails."""
    lines = [line for line in _nvidia_smi("-L") if line.startswith("GPU ")]
    return [line.partition(":")[2].partition("(")[0].strip() for line in lines]


def free_memory() -> dict[str, int]:
    """Return the free memory of each GPU that nvidia-smi knows, in bytes, by its index and by its UUID."""
    free: dict[str, int] = {}
    for line in _nvidia_smi("--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"):
        *names, mebibytes = (part.strip() for part in line.split(","))
        if mebibytes.isdigit():
            free |= dict.fromkeys(names, int(mebibytes) * 2**20)
    return free


def describe_gpus() -> list[dict[str, str]]:
    """Return `name` and `compute_capability` of each visible GPU that nvidia-smi knows, in their order."""
    found: dict[str, dict[str, str]] = {}
    for line in _nvidia_smi("--query-gpu=index,uuid,compute_cap,name", "--format=csv,noheader"):
        fields = [part.strip() for part in line.split(",", 3)]
        if len(fields) == 4:
            *ids, capability, name = fields
            found |= {each: {"name": name, "compute_capability": capability} for each in ids}
    return [found[name] for name in visible_gpus() if name in found]


def _nvidia_smi(*arguments: str) -> list[str]:
    """Return the lines that nvidia-smi prints; none where it is missing or fails."""
    executable = shutil.which("nvidia-smi")
    if executable is None:
        return []
    try:
        listing = subprocess.run([executable, *arguments], check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listing.stdout.splitlines() if listing.returncode == 0 else []


def take_gpus(count: int, folder: Path | None = None, among: Sequence[str] | None = None) -> list[str]:
    """Make `count` GPUs this process's own until it ends, and the only ones that it sees.

    Waits while too few are free. Has to be called before CUDA is first used; servers that are started afterwards see
    the same GPUs.

    Args:
        count: how many; with 0 the process sees none. Where there are none at all, it has none either.
        folder: where the lock files are; by default one that all of this user's runs share.
        among: the ids to choose from; None is all that are visible.

    Returns:
        The ids of those that were taken; none where there are none, or a scheduler has handed out as many.

    Raises:
        RuntimeError: fewer are visible than are wanted.
    """
    if not count:
        os.environ[VISIBLE] = ""
        return []
    visible = visible_gpus()
    ids = visible if among is None else list(among)
    if not ids:
        return []
    if len(ids) < count:
        raise RuntimeError(
            f"this job wants {count} GPUs and sees {len(ids)} ({', '.join(ids)}); lower `gpus` of the model, or run it "
            "where there are more"
        )
    if len(visible) == count and any(name in os.environ for name in SCHEDULED):
        logger.info("this job runs on GPU %s, %s", ", ".join(ids), "the only one that it sees" if count == 1 else "all")
        _own[:] = ids
        return []
    _own[:] = _taken(ids, count, folder or Path(tempfile.gettempdir()) / f"aird-gpus-{os.getuid()}")
    if VISIBLE not in os.environ:
        os.environ[ORDER] = "PCI_BUS_ID"  # in which nvidia-smi counts; CUDA's own order begins with the fastest
    os.environ[VISIBLE] = ",".join(_own)
    logger.info("this job runs on GPU %s of %s", ", ".join(_own), ", ".join(ids))
    return list(_own)


def own_gpus() -> int:
    """Return over how many GPUs this process spreads a model: those that are its own, else 1."""
    return max(1, len(_own))


def spreading_obstacle(config: Mapping[str, Any], count: int) -> str | None:
    """Return why vLLM cannot spread a model over `count` GPUs, in words; None if it can.

    Args:
        config: the checkpoint's config.json.
        count: number of GPUs; each gets as many attention heads as any other.
    """
    text = config.get("text_config", config)
    heads = text.get("num_attention_heads") or 0
    shared = text.get("num_key_value_heads") or heads
    fits = heads % count == 0 and (shared % count == 0 or count % (shared or 1) == 0)
    if fits:
        return None
    return f"its {heads} attention heads, {shared} of them with keys and values, cannot be dealt to {count} GPUs alike"


def _taken(ids: list[str], count: int, folder: Path) -> list[str]:
    """Lock `count` of these GPUs, one after the other as they become free; return them in the order of `ids`."""
    from filelock import FileLock  # here, as in aird/support/lifetime.py

    folder.mkdir(mode=0o700, exist_ok=True)
    taken = {name for name in ids if name in _own}  # a process cannot take a lock that it has
    told = False
    # Only one job gathers at a time: two that hold half of what they want would wait for each other.
    with FileLock(folder / "gathering.lock", fallback_to_soft=False, poll_interval=POLL_SECONDS / 10):
        while True:
            for name in ids:
                if len(taken) < count and name not in taken and take_lock(folder / f"{name}.lock"):
                    taken.add(name)
            if len(taken) >= count:
                return [name for name in ids if name in taken][:count]
            if not told:
                logger.info("waiting for %d of the GPUs %s", count, ", ".join(ids))
                told = True
            time.sleep(POLL_SECONDS)

"""One GPU for one job on a machine that has several.

Snakemake counts GPUs but does not say which one a job gets, so each job takes one by a
lock file that the kernel releases when the job ends. Schedulers hand out one GPU per
job themselves: a job that sees a single one takes nothing.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from aird.support.lifetime import take_lock

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 1.0


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
    executable = shutil.which("nvidia-smi")
    if executable is None:
        return []
    try:
        listing = subprocess.run([executable, "-L"], check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if listing.returncode != 0:
        return []
    lines = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    return [line.partition(":")[2].partition("(")[0].strip() for line in lines]


def take_gpu(folder: Path | None = None) -> str | None:
    """Make one GPU this process's own until it ends, and the only one that it sees.

    Waits while all are taken. Has to be called before CUDA is first used; servers that are started
    afterwards see the same GPU.

    Args:
        folder: where the lock files are; by default one that all of this user's runs share.

    Returns:
        The GPU's id, or None where there is no choice (no GPU, or one).
    """
    ids = visible_gpus()
    if len(ids) < 2:
        if ids:
            logger.info("this job runs on GPU %s, the only one that it sees", ids[0])
        return None
    folder = folder or Path(tempfile.gettempdir()) / f"aird-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    told = False
    while True:
        for name in ids:
            if take_lock(folder / f"{name}.lock"):
                os.environ[VISIBLE] = name
                logger.info("this job runs on GPU %s of %s", name, ", ".join(ids))
                return name
        if not told:
            logger.info("waiting for one of the GPUs %s", ", ".join(ids))
            told = True
        time.sleep(POLL_SECONDS)

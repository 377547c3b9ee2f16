"""Programs that a test needs, installed from Debian's packages."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock


def install_packages(packages: Sequence[str], failure: type[Exception]) -> None:
    """Install packages by apt-get; raise `failure` with its last words where that fails."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with FileLock(Path(tempfile.gettempdir(), "aird-tests-apt.lock")):  # apt-get does not wait for another one
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
            result = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                raise failure(f"apt-get {command[0]} failed: {result.stderr[-300:]}")

"""A real Chromium, installed from Debian's packages where that is allowed and possible."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from debian import install_packages

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium-headless-shell", "fonts-dejavu-core")


class NoBrowser(Exception):
    """There is no browser here; the message says why."""


@contextmanager
def running_browser() -> Iterator[Any]:
    """Yield a headless Chromium, driven by Playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise NoBrowser("Playwright is not installed (envs/development.lock.txt)") from error
    executable = _find() or _install()
    with sync_playwright() as playwright:
        # The pages are this project's own, and containers often lack what Chromium's sandbox needs.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


def _find() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


def _install() -> str:
    if os.environ.get("AIRD_TEST_BROWSER") != "1":
        raise NoBrowser("there is no Chromium; AIRD_TEST_BROWSER=1 lets this test install one (.ci/run does)")
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoBrowser("there is no Chromium, and installing it needs root and apt-get")
    install_packages(PACKAGES, NoBrowser)
    executable = _find()
    if executable is None:
        raise NoBrowser(f"the packages {', '.join(PACKAGES)} bring no program of the names {', '.join(NAMES)}")
    return executable

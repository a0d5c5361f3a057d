"""Chromium for tests of pages."""

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


SWITCHES = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
OWN = re.compile(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|data:|blob:")  # what a page of ours may ask
PATIENCE = 120_000  # milliseconds: the machine may be busy


def chromium() -> Iterator[Any]:
    """Give a running Chromium; skip the test where it cannot be had."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install it")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium on the PATH: install Debian's package")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=SWITCHES.split())
        yield browser
        browser.close()

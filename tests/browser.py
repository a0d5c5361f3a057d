"""Chromium for tests of web pages."""

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


ARGUMENTS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
LOCAL_URL = re.compile(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|data:|blob:")  # all that our pages may request
TIMEOUT_MS = 120_000  # generous, because the machine may be busy


def chromium() -> Iterator[Any]:
    """Yield a running Chromium, or skip the test if it is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install it")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS.split())
        yield browser
        browser.close()

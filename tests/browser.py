"""A headless Chromium for tests of pages."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
)


def binaries() -> tuple[str, str]:
    """Chromium and its driver, or a test that is skipped with the reason."""
    found = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if found[0] is None or found[1] is None:
        missing = "chromium" if found[0] is None else "chromedriver"
        reason = f"{missing} is not installed (Debian's packages chromium and chromium-driver)"
        if os.environ.get("OUTLIERS_NEED_CHROMIUM"):  # where it is meant to be there, its absence must not pass
            pytest.fail(reason)
        pytest.skip(reason)
    return found[0], found[1]


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A driver of a fresh browser that writes down what the page logs and which addresses it asks for."""
    browser, driver = binaries()
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options, Service(driver))
    try:
        yield started
    finally:
        started.quit()


def until(what: Callable[[], Any], seconds: float = 20) -> Any:
    """The first true answer."""
    stop = time.monotonic() + seconds
    while True:
        answer = what()
        if answer:
            return answer
        if time.monotonic() > stop:
            raise AssertionError("the page did not get there")
        time.sleep(0.02)
